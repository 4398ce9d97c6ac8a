-- A heartbeat is one statement, and so is the question for changes with its marks. A full read asks for the marks of its
-- own gateway alone where a bell addresses them.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

-- How many gateways there are, counted by the bell for all of them.

alter table gatepost.merger add gateways bigint;
comment on column gatepost.merger.gateways is 'How many agents were attached at unwatched_at.';

create function gatepost.count_attached() returns bigint
language plpgsql stable as $$
begin
    return (select count(*) from gatepost.attached a where a.at > now() - interval '5 minutes');
end $$;
comment on function gatepost.count_attached() is 'How many agents have said within five minutes that they are there.';

create or replace function gatepost.look_for_unwatched() returns void
language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
    update gatepost.merger m
    set triggers = gatepost.triggers_version(), unwatched = gatepost.unwatched(),
        gateways = gatepost.count_attached(), unwatched_at = clock_timestamp()
    where clock_timestamp() not between m.unwatched_at and m.unwatched_at + interval '5 seconds'
$$;
comment on function gatepost.look_for_unwatched() is
    'Notes for gatepost.follow() which changes are not announced and how many gateways there are, at most every five seconds. For the bell.';

create function gatepost.known_gateways() returns bigint
language plpgsql stable as $$
begin
    return coalesce(
        (
            select m.gateways
            from gatepost.merger m
            where clock_timestamp() between m.unwatched_at and m.unwatched_at + interval '15 seconds'
        ),
        gatepost.count_attached()
    );
end $$;
comment on function gatepost.known_gateways() is
    'As gatepost.count_attached(), or what a bell counted a few seconds ago.';

do $migration$
declare
    edited regprocedure;
    made text;
begin
    foreach edited in array array['gatepost.attach(boolean)', 'gatepost.attach(text, boolean)']::regprocedure[] loop
        made := replace(pg_get_functiondef(edited), '    return (
        select count(*) from gatepost.attached a where a.at > now() - interval ''5 minutes''
    );
', '    return gatepost.known_gateways();
');
        if made not like '%known_gateways()%' then
            raise exception '% is not as expected', edited;
        end if;
        execute made;
    end loop;
end $migration$;

create function gatepost.beat(
    me uuid, proven_at timestamptz, since_epoch text, machine text, boot text, host_name text, listens boolean,
    out taken boolean, out leader text, out others text[], out is_merged boolean, out refused text[],
    out refused_since timestamptz[], out gateways bigint, out unwatched text[]
)
language plpgsql volatile as $$
begin
    select p.* into taken, leader, others, is_merged, refused, refused_since
    from gatepost.prove_of($1, $2, $3, $4, $5, $6) p;
    begin
        -- As gatepost.attach(), which merges reports as well where no bell does: a transaction that stays open would hold
        -- the gateway's row then.
        insert into gatepost.attached as a (gateway_id, listens, at)
        values ($1, $7, now())
        on conflict (gateway_id) do update set listens = excluded.listens, at = excluded.at;
        perform gatepost.remember_server();
        unwatched := gatepost.known_unwatched();
        gateways := gatepost.known_gateways();
    exception when others then
        null; -- the proof is true all the same
    end;
end $$;
comment on function gatepost.beat(uuid, timestamptz, text, text, text, text, boolean) is
    'As gatepost.heartbeat(), for this gateway.';

create function gatepost.heartbeat(
    proven_at timestamptz, since_epoch text, machine text, boot text, host_name text, listens boolean,
    out taken boolean, out leader text, out others text[], out is_merged boolean, out refused text[],
    out refused_since timestamptz[], out gateways bigint, out unwatched text[]
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    select b.* into taken, leader, others, is_merged, refused, refused_since, gateways, unwatched
    from gatepost.beat(gatepost.me(), $1, $2, $3, $4, $5, $6) b;
end $$;
comment on function gatepost.heartbeat(timestamptz, text, text, text, text, boolean) is
    'As gatepost.prove() and gatepost.follow(). `gateways` is null where only the latter failed.';
create function gatepost.heartbeat(
    token text, proven_at timestamptz, since_epoch text, machine text, boot text, host_name text, listens boolean,
    out taken boolean, out leader text, out others text[], out is_merged boolean, out refused text[],
    out refused_since timestamptz[], out gateways bigint, out unwatched text[]
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    -- None can listen in a session of a pool.
    select b.* into taken, leader, others, is_merged, refused, refused_since, gateways, unwatched
    from gatepost.beat(gatepost.me($1), $2, $3, $4, $5, $6, false) b;
end $$;
comment on function gatepost.heartbeat(text, timestamptz, text, text, text, text, boolean) is
    'As gatepost.heartbeat(timestamp with time zone,text,text,text,text,boolean), for the gateway of this token.';

-- The marks that a full read brings with it.

create function gatepost.latest_marks(me uuid) returns gatepost.change[]
language plpgsql stable as $$
declare
    last gatepost.addressed;
begin
    select * into last from gatepost.addressed a where a.history = gatepost.history();
    return array(
        select s.c
        from (
            (
                select c, c.xid
                from gatepost.change c
                where c.gateway_id in (me, gatepost.everyone())
                order by c.xid desc
                limit 5000
            )
            union all
            -- Those of no gateway that no bell has addressed: from before it began, and since it looked last.
            (
                select c, c.xid
                from gatepost.change c
                where c.gateway_id = gatepost.nobody()
                    and c.xid < pg_snapshot_xmax(coalesce(last.since, pg_current_snapshot()))
                    and pg_visible_in_snapshot(c.xid, coalesce(last.since, pg_current_snapshot()))
                order by c.xid desc
                limit 5000
            )
            union all
            (
                select c, c.xid
                from gatepost.change c
                where c.gateway_id = gatepost.nobody() and c.xid >= pg_snapshot_xmin(last.seen)
                    and not pg_visible_in_snapshot(c.xid, last.seen)
                order by c.xid desc
                limit 5000
            )
        ) s (c, xid)
        order by s.xid desc
        limit 5000
    );
end $$;
comment on function gatepost.latest_marks(uuid) is 'The latest marks that may concern this gateway, at most 5,000.';

create function gatepost.withdrawing(me uuid, marks gatepost.change[]) returns table (xid text, kind text, ids uuid[])
language plpgsql stable as $$
declare
    foreign_ids constant uuid[] := array(
        select l.id
        from (
            select distinct i as id
            from unnest(marks) m
            cross join unnest(m.ids) i
            where m.gateway_id <> me
                and m.kind in ('all', 'gateway', 'setting', 'peer', 'device', 'user', 'owner')
        ) l
        where (
            exists (select from public.wireguard_peers p where p.device_id = l.id)
            or exists (
                select
                from public.devices d
                join public.wireguard_peers p on p.device_id = d.id
                where d.user_id = l.id
            )
        ) and not exists (
            select
            from public.wireguard_peers p
            where p.device_id = l.id and p.gateway_id = me
        ) and not exists (
            select
            from public.devices d
            join public.wireguard_peers p on p.device_id = d.id
            where d.user_id = l.id and p.gateway_id = me
        )
    );
begin
    return query
    select m.xid::text, m.kind::text, k.ids
    from unnest(marks) m
    cross join lateral (
        select case
            when m.gateway_id = me or m.ids is null or not m.ids && foreign_ids then m.ids
            else array(select i from unnest(m.ids) i where i <> all (foreign_ids))
        end as ids
    ) k
    where m.kind in ('all', 'gateway', 'setting', 'peer', 'device', 'user', 'owner')
        -- A mark without ids concerns everybody.
        and (cardinality(k.ids) > 0 or cardinality(m.ids) = 0 or m.ids is null);
end $$;
comment on function gatepost.withdrawing(uuid, gatepost.change[]) is
    'Those of these marks that may withdraw peers of this gateway, without the ids of rows of other gateways alone. An id that no row has any more stays: its withdrawal may have been a deletion.';

create function gatepost.marks_of(me uuid, since text, since_epoch text)
returns table (xid text, kind text, ids uuid[])
language plpgsql volatile as $$
declare
    present constant text := gatepost.epoch(me);
begin
    return query
    select w.*
    from gatepost.withdrawing(me, case
        when since_epoch = present or gatepost.continued(since_epoch) = present
            then gatepost.marks_since(me, since::pg_snapshot)
        -- The agent has just started, or follows another history than before.
        else gatepost.latest_marks(me)
    end) w;
end $$;
comment on function gatepost.marks_of(uuid, text, text) is 'As gatepost.marks(), for this gateway.';

create or replace function gatepost.marks(since text, since_epoch text)
returns table (xid text, kind text, ids uuid[])
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set row_security = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
begin
    return query select m.* from gatepost.marks_of(gatepost.me(), $1, $2) m;
end $$;
create or replace function gatepost.marks(token text, since text, since_epoch text)
returns table (xid text, kind text, ids uuid[])
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set row_security = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
begin
    return query select m.* from gatepost.marks_of(gatepost.me($1), $2, $3) m;
end $$;

-- What changed, and the marks that may withdraw peers, in one statement.

create function gatepost.marked(
    me uuid, since text, since_epoch text, known uuid[],
    out cursor text, out epoch text, out taken_at timestamptz, out everything text,
    out devices uuid[], out users uuid[], out policies uuid[],
    out mark_xids text[], out mark_kinds text[], out mark_ids text[]
)
language plpgsql volatile as $$
begin
    select c.* into cursor, epoch, taken_at, everything, devices, users, policies
    from gatepost.changes_among($1, $2, $3, $4) c;
    -- Only a device can be withdrawn.
    if everything is null and cardinality(devices) > 0 then
        select array_agg(w.xid), array_agg(w.kind), array_agg(array_to_string(w.ids, ','))
        into mark_xids, mark_kinds, mark_ids
        from gatepost.withdrawing(me, gatepost.marks_since(me, since::pg_snapshot)) w;
    end if;
    mark_xids := coalesce(mark_xids, '{}');
    mark_kinds := coalesce(mark_kinds, '{}');
    mark_ids := coalesce(mark_ids, '{}');
end $$;
comment on function gatepost.marked(uuid, text, text, uuid[]) is
    'As gatepost.read_changes(), for this gateway.';

create function gatepost.read_changes(
    since text, since_epoch text, known uuid[],
    out cursor text, out epoch text, out taken_at timestamptz, out everything text,
    out devices uuid[], out users uuid[], out policies uuid[],
    out mark_xids text[], out mark_kinds text[], out mark_ids text[]
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set row_security = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
begin
    select c.* into cursor, epoch, taken_at, everything, devices, users, policies, mark_xids, mark_kinds, mark_ids
    from gatepost.marked(gatepost.me(), $1, $2, $3) c;
end $$;
comment on function gatepost.read_changes(text, text, uuid[]) is
    'As gatepost.changes_among(), and if devices changed the marks of gatepost.marks(). `mark_ids`: separated by commas; null: too many to list.';
create function gatepost.read_changes(
    token text, since text, since_epoch text, known uuid[],
    out cursor text, out epoch text, out taken_at timestamptz, out everything text,
    out devices uuid[], out users uuid[], out policies uuid[],
    out mark_xids text[], out mark_kinds text[], out mark_ids text[]
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set row_security = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
begin
    select c.* into cursor, epoch, taken_at, everything, devices, users, policies, mark_xids, mark_kinds, mark_ids
    from gatepost.marked(gatepost.me($1), $2, $3, $4) c;
end $$;
comment on function gatepost.read_changes(text, text, text, uuid[]) is
    'As gatepost.read_changes(text,text,uuid[]), for the gateway of this token.';

revoke execute on all functions in schema gatepost from public;

reset role;
