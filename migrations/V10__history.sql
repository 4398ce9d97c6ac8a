-- Nothing hides a revocation: neither triggers that were off for a while nor a history that was lost.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

-- To disable a trigger, to enable, rename or create it, each writes its row of pg_trigger, and the
-- row's xmin moves. VACUUM keeps xmin.
create function gatepost.triggers_version() returns text
language plpgsql stable as $$
declare
    -- In a variable: a condition would call to_regclass() for each row.
    tables constant oid[] := array[
        to_regclass('public.users'), to_regclass('public.devices'),
        to_regclass('public.wireguard_peers'), to_regclass('public.gateways'),
        to_regclass('public.ip_allocations'), to_regclass('public.policies'),
        to_regclass('public.policy_targets'), to_regclass('public.policy_destinations'),
        to_regclass('public.groups'), to_regclass('public.group_memberships'),
        to_regclass('public.settings')
    ];
begin
    return (
        select count(*) || ':' || sum(hashtextextended(t.xmin::text, t.oid::bigint))
        from pg_trigger t
        where t.tgrelid = any (tables) and t.tgname like 'gatepost\_%'
    );
end $$;
comment on function gatepost.triggers_version() is
    'Differs after any alteration of Gatepost''s triggers, also if a later one took it back.';

-- A cursor belongs to a history, a gateway, and a version of the triggers.
create or replace function gatepost.epoch() returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    return concat_ws('/', gatepost.history(), gatepost.me(), gatepost.triggers_version());
end $$;

create or replace function gatepost.unusable(seen pg_snapshot, since_epoch text) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    present constant text := gatepost.epoch();
begin
    if present <> since_epoch then
        return case regexp_replace(since_epoch, '/[^/]*$', '')
            when regexp_replace(present, '/[^/]*$', '') then 'triggers were altered since the cursor'
            else 'the cursor is of another epoch'
        end;
    elsif pg_snapshot_xmax(seen) > pg_snapshot_xmax(pg_current_snapshot()) then
        return 'the cursor is ahead of the server';
    elsif (
        select pg_snapshot_xmin(seen) < s.floor
            and s.floor <= pg_snapshot_xmax(pg_current_snapshot()) -- else it came with a backup
        from gatepost.state s
    ) then
        return 'the marks since the cursor are pruned';
    end if;
    return null;
end $$;

-- gatepost.unusable() compares the epochs: to ask for it once more would cost as much again.
do $$
declare
    present constant text := pg_get_functiondef('gatepost.changes(text, text)'::regprocedure);
begin
    execute replace(present, 'epoch := gatepost.epoch();', 'epoch := since_epoch;');
end $$;

-- No function that every agent calls waits for a lock that another gateway's session may hold: each
-- gateway writes its own row alone.
create or replace function gatepost.attach(listens boolean) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    insert into gatepost.attached as a (gateway_id, listens, at)
    values (gatepost.me(), attach.listens, now())
    on conflict (gateway_id) do update set listens = excluded.listens, at = excluded.at;
    return (
        select count(*) from gatepost.attached a where a.at > now() - interval '5 minutes'
    );
end $$;

-- What an agent keeps of a withdrawal that it carried out, to ask for after a failover: whether the
-- marks that brought it about are still there. Null for `ids`: the mark lists nothing.
-- Of the marks for all gateways, only the ids that may be of this one. An id that no row has any more
-- stays: its withdrawal may have been a deletion.
create function gatepost.marks(since text, since_epoch text)
returns table (xid text, kind text, ids uuid[])
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set row_security = off set plan_cache_mode = force_generic_plan set enable_seqscan = off
set jit = off as $$
declare
    me constant uuid := gatepost.me();
    seen constant pg_snapshot := case when since_epoch = gatepost.epoch() then since::pg_snapshot end;
    marks gatepost.change[];
    foreign_ids uuid[];
begin
    if seen is not null then
        marks := gatepost.marks_since(me, seen);
    else
        -- The agent has just started, or follows another history than before.
        marks := array(
            select c
            from gatepost.change c
            where c.gateway_id in (me, gatepost.everyone(), gatepost.nobody())
            order by c.xid desc
            limit 5000
        );
    end if;
    foreign_ids := array(
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
comment on function gatepost.marks(text, text) is
    'Marks since a cursor that may withdraw peers, or the latest if the cursor is of another epoch, without the ids of rows of other gateways alone. To be called in the transaction of the read.';

-- An xid alone is not enough: after a failover that lost transactions, others take the same ids.
create function gatepost.lost_marks(
    xids text[], kinds text[], ids uuid[], devices uuid[], users uuid[], read_at timestamptz[]
) returns setof integer
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set jit = off as $$
declare
    me constant uuid := gatepost.me();
    floor constant xid8 := (select s.floor from gatepost.state s);
begin
    return query
    with missing as materialized (
        select k.number, k.device, k.owner, k.read_at
        from unnest(xids, kinds, ids, devices, users, lost_marks.read_at)
            with ordinality k (xid, kind, id, device, owner, read_at, number)
        where k.xid::xid8 >= floor
            and not exists (
                select
                from gatepost.change c
                where c.xid = k.xid::xid8 and c.kind::text = k.kind
                    and c.gateway_id in (me, gatepost.everyone(), gatepost.nobody())
                    and (k.id is null or k.id = any (c.ids))
            )
    ),
    newer as materialized (
        select c.kind, i as id, max(c.at) as at
        from gatepost.change c
        cross join unnest(c.ids) i
        where c.at > (select min(m.read_at) from missing m)
            and c.gateway_id in (me, gatepost.everyone(), gatepost.nobody())
        group by c.kind, i
    )
    select m.number::integer
    from missing m
    -- Two conditions, because one with OR is no hash join.
    where not exists (
        select
        from newer n
        where n.id = m.device and n.kind in ('peer', 'device') and n.at > m.read_at
    ) and not exists (
        select
        from newer n
        where n.id = m.owner and n.kind in ('user', 'owner') and n.at > m.read_at
    );
end $$;
comment on function gatepost.lost_marks(text[], text[], uuid[], uuid[], uuid[], timestamptz[]) is
    'The numbers of the marks that are gone though they were not pruned, and that no later mark about the same device or user replaces.';

revoke execute on all functions in schema gatepost from public;
grant execute on function
    gatepost.marks(text, text),
    gatepost.lost_marks(text[], text[], uuid[], uuid[], uuid[], timestamptz[])
to gatepost_gateway;

reset role;
