-- A bell (`gatepost bell`) tells gateways over NATS that there are changes for them, so that neither
-- writers nor gateways notify each other, and merges the reports of all gateways.
--
-- Several bells may run. The row of gatepost.bell says which one rings: its holder renews it each second,
-- and another takes over after three. It is a lease, not a lock: a transaction that holds a row lock has
-- a transaction id, which would keep every table of the database from being vacuumed for as long as the
-- bell runs. Nothing depends on there being one bell only: two of them ring twice.
--
-- A bell rings for marks that its own snapshot sees. So the read of a gateway that was rung sees them, too.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

create table gatepost.bell (
    one boolean primary key default true check (one),
    holder text,
    since timestamptz,
    heard_at timestamptz not null default '-infinity',
    history text,
    told pg_snapshot,
    told_by xid8
) with (fillfactor = 10);
insert into gatepost.bell default values;

-- A table of its own: to write it waits for no look, and lets none wait.
create table gatepost.merger (
    one boolean primary key default true check (one),
    at timestamptz not null default '-infinity'
) with (fillfactor = 10);
insert into gatepost.merger default values;
comment on table gatepost.merger is
    'When a bell last asked whose reports wait. Granted to no role.';
comment on table gatepost.bell is
    'The bell that rings, since when, and the snapshot whose marks it has rung for, in this history. Granted to no role: only gatepost_bell calls the functions that write it.';

create function gatepost.has_bell() returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
    -- A clock that was set back delays nothing.
    select exists (
        select
        from gatepost.bell b
        where clock_timestamp() between b.heard_at and b.heard_at + interval '3 seconds'
    )
$$;
comment on function gatepost.has_bell() is 'Whether a bell rings: its holder was heard of in the last three seconds.';

create function gatepost.hold_bell(
    bell text, out is_held boolean, out holder text, out since timestamptz, out took_over boolean
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
    last gatepost.bell;
begin
    select * into last from gatepost.bell b;
    if last.holder is distinct from bell and gatepost.has_bell() then
        is_held := false;
        holder := last.holder;
        since := last.since;
        took_over := false;
        return;
    end if;
    perform set_config('synchronous_commit', 'off', true);
    select * into last from gatepost.bell b for update;
    took_over := last.holder is distinct from bell;
    is_held := not took_over or not gatepost.has_bell();
    if not is_held then -- another one was faster
        holder := last.holder;
        since := last.since;
        took_over := false;
        return;
    end if;
    holder := bell;
    since := case when took_over then clock_timestamp() else last.since end;
    update gatepost.bell b
    set holder = bell, since = since, heard_at = clock_timestamp(),
        -- The former one may have ended between its commit and its message.
        history = case when not took_over then b.history end;
end $$;
comment on function gatepost.hold_bell(text) is
    'Makes this bell the one that rings, or keeps it so, unless another was heard of in the last three seconds. To be called each second. `holder`: the one that rings.';

create function gatepost.leave_bell(bell text) returns void
language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
    update gatepost.bell b set heard_at = '-infinity' where b.holder = bell
$$;
comment on function gatepost.leave_bell(text) is 'Lets another bell take over at once.';

create function gatepost.ring(
    bell text, out is_held boolean, out everyone boolean, out gateways uuid[]
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
set lock_timeout = '50ms' as $$
declare
    present constant text := gatepost.history();
    last gatepost.bell;
    seen pg_snapshot;
    began pg_snapshot;
    running xid8[];
    next pg_snapshot;
    own xid8;
    has_news boolean;
    is_blocked boolean;
begin
    everyone := false;
    gateways := '{}';
    select * into last from gatepost.bell b;
    select a.seen into seen from gatepost.addressed a where a.history = present;
    is_held := (last.holder = bell) is true;
    running := array(select pg_snapshot_xip(last.told));
    if not is_held then
        return;
    end if;
    has_news := last.history is distinct from present or exists (
        select
        from gatepost.change c
        where c.xid >= pg_snapshot_xmax(last.told) and c.xid <> last.told_by
            and c.xid < pg_snapshot_xmax(pg_current_snapshot())
    ) or exists (
        select from gatepost.change c where c.xid = any (running) and c.xid <> last.told_by
    );
    if not has_news and not gatepost.waits(seen) then
        return;
    end if;

    -- Lost in a crash, it is done again: the history is another one then.
    perform set_config('synchronous_commit', 'off', true);
    -- A session of a gateway of the last release may hold this row: then gateways look for themselves.
    perform from gatepost.addressed for update skip locked;
    is_blocked := not found;
    if is_blocked and not has_news then
        return;
    end if;
    perform from gatepost.bell b where b.holder = bell for update;
    if not found then
        is_held := false;
        return;
    end if;
    if not is_blocked then
        select a.since into began from gatepost.addressed a where a.history = present;
        if began is null then
            update gatepost.addressed
            set history = present, since = pg_current_snapshot(), seen = pg_current_snapshot(),
                at = now();
            everyone := true;
        elsif gatepost.waits(seen) then
            begin
                perform gatepost.address();
            exception when others then
                -- A migration holds a table, or a column is gone: then gateways look for themselves.
                is_blocked := true;
            end;
            everyone := began::text <> (select a.since::text from gatepost.addressed a);
        end if;
    end if;
    own := pg_current_xact_id();
    -- One statement: the marks that its snapshot sees, and that snapshot.
    select pg_current_snapshot(), array(
        select c.gateway_id
        from gatepost.change c
        where c.xid >= pg_snapshot_xmax(last.told) and c.xid <> last.told_by
            and (c.xid < pg_snapshot_xmax(pg_current_snapshot()) or c.xid = own)
        union
        select c.gateway_id
        from gatepost.change c
        where c.xid = any (running) and c.xid <> last.told_by
    )
    into next, gateways;
    everyone := everyone
        or last.history is distinct from present
        or gatepost.everyone() = any (gateways)
        or is_blocked and gatepost.nobody() = any (gateways);
    -- Those that have come since the marks were addressed are addressed by the next call.
    gateways := array_remove(gateways, gatepost.nobody());
    everyone := everyone or cardinality(gateways) > 1 and cardinality(gateways) * 2 > (
        select count(*) from gatepost.attached a where a.at > now() - interval '5 minutes'
    );
    if everyone then
        gateways := '{}';
    end if;
    -- Agents of the last release listen, and notify each other only where no bell rings.
    if pg_notification_queue_usage() < 0.5 then
        if everyone then
            perform pg_notify('gatepost_all', '');
        else
            perform pg_notify('gatepost_' || g, '') from unnest(gateways) g;
        end if;
    end if;
    update gatepost.bell b set history = present, told = next, told_by = own where b.holder = bell;
end $$;
comment on function gatepost.ring(text) is
    'What to ring for since the last call, to be published after the commit: everyone, or these gateways. Addresses the marks that are for no gateway yet. Not held: another bell rings.';

create function gatepost.bells(
    out holder text, out since timestamptz, out heard_at timestamptz, out is_alive boolean,
    out gateways bigint
) returns setof record
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select b.holder, b.since, b.heard_at, gatepost.has_bell(), (
        select count(*) from gatepost.attached a where a.at > now() - interval '5 minutes'
    )
    from gatepost.bell b
    where b.holder is not null
$$;
comment on function gatepost.bells() is
    'The bell that rings or rang last, and how many gateways'' agents were there in the last five minutes. For bells and the owner.';

-- Reports.

create function gatepost.unmerged() returns setof uuid
language sql volatile security definer set search_path = pg_catalog, pg_temp
set row_security = off set jit = off as $$
    update gatepost.merger m set at = clock_timestamp()
    where clock_timestamp() not between m.at and m.at + interval '5 seconds';
    select s.gateway_id from gatepost.seen s
    union
    select e.gateway_id from gatepost.event e
    union
    select g.id
    from (
        select h.gateway_id, min(h.proven_at) as at
        from gatepost.host h
        group by h.gateway_id
        having bool_and(h.proven_at is not null)
    ) proof
    join public.gateways g on g.id = proof.gateway_id
    where g.last_sync_at is null or g.last_sync_at < proof.at or g.last_sync_at > now()
$$;
comment on function gatepost.unmerged() is
    'Gateways whose reports wait to be merged. Notes that a bell merges them.';

create function gatepost.has_merger() returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
    select gatepost.has_bell() and exists (
        select
        from gatepost.merger m
        where clock_timestamp() between m.at and m.at + interval '30 seconds'
    )
$$;
comment on function gatepost.has_merger() is
    'Whether a bell rings that asked within thirty seconds whose reports wait.';

-- At most one page of each kind, so that no gateway holds up the others.
do $$
declare
    present constant text := pg_get_functiondef('gatepost.merge_of(uuid, interval)'::regprocedure);
    made text := replace(present, '.merge_of(', '.merge_page_of(');
begin
    made := replace(made, '        exit when exists (
            select from gatepost.refused r where r.gateway_id = gateway and r.relation = ''devices''
        );
', '        exit;
');
    made := replace(made, '        exit when part.settled < 1000;
', '        exit;
');
    if made like '%exit when exists%' or made like '%settled < 1000%' then
        raise exception 'gatepost.merge_of(uuid, interval) is not as expected';
    end if;
    execute made;
end $$;
comment on function gatepost.merge_page_of(uuid, interval) is
    'As gatepost.merge_of(), but at most a thousand reports of each kind.';

create function gatepost.merge_gateway(gateway uuid)
returns table (why text, since timestamptz, lost integer)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    -- What a crash takes back waits again.
    perform set_config('synchronous_commit', 'off', true);
    return query
    select m.why, null::timestamptz, m.lost
    from gatepost.merge_page_of(gateway, '0') m
    where m.lost > 0;
    return query
    select r.why, r.since, 0
    from gatepost.refused r
    where r.gateway_id = gateway
    order by r.relation;
end $$;
comment on function gatepost.merge_gateway(uuid) is
    'As gatepost.merge(), for any gateway, at most a thousand reports of each kind. For the bell, to be called in a statement of its own.';

create or replace function gatepost.merge()
returns table (why text, since timestamptz, lost integer)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    me constant uuid := gatepost.me();
begin
    if not gatepost.has_merger() then
        -- What a crash takes back waits again.
        perform set_config('synchronous_commit', 'off', true);
        return query
        select m.why, null::timestamptz, m.lost
        from gatepost.merge_of(me, '0') m
        where m.lost > 0;
    end if;
    return query
    select r.why, r.since, 0 from gatepost.refused r where r.gateway_id = me order by r.relation;
end $$;
comment on function gatepost.merge() is
    'Merges the reports of this gateway into gateways, devices and audit_logs, unless a bell does that. To be called in a statement of its own, because it locks the rows that it writes. Returns why reports wait, and since when, or how many are lost because of what they say.';

create or replace function gatepost.attach(listens boolean) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    me constant uuid := gatepost.me();
begin
    insert into gatepost.attached as a (gateway_id, listens, at)
    values (me, attach.listens, now())
    on conflict (gateway_id) do update set listens = excluded.listens, at = excluded.at;
    if not gatepost.has_merger() then
        begin
            perform gatepost.merge_of(me, interval '30 seconds');
        exception when others then
            null; -- no reason to be away
        end;
    end if;
    return (
        select count(*) from gatepost.attached a where a.at > now() - interval '5 minutes'
    );
end $$;

-- Agents of schema 12 take turns where no bell rings.
do $$
declare
    present constant text := pg_get_functiondef('gatepost.take_turn()'::regprocedure);
    before constant text := '    select * into last from gatepost.addressed;
    addresses :=';
begin
    if position(before in present) = 0 then
        raise exception 'gatepost.take_turn() is not as expected';
    end if;
    execute replace(present, before, '    if gatepost.has_bell() then
        return;
    end if;
' || before);
end $$;

-- Stable: all of it sees one snapshot.
create function gatepost.news(
    since text, since_epoch text, out cursor text, out quiet_until timestamptz, out news boolean
)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
    me constant uuid := gatepost.me();
    behind constant pg_snapshot := since::pg_snapshot;
    last gatepost.addressed;
begin
    cursor := pg_current_snapshot()::text;
    quiet_until := now();
    select * into last from gatepost.addressed a where a.history = gatepost.history();
    news := gatepost.has_news(array[me, gatepost.everyone()], behind)
        or gatepost.has_unaddressed(behind, last.since, last.seen)
        or gatepost.unusable(behind, since_epoch) is not null;
end $$;
comment on function gatepost.news(text, text) is
    'The cheap question of an agent that looks by itself. `news`: ask gatepost.changes_among(). Else `cursor` is the next one, and nothing that was committed before `quiet_until` concerns the gateway.';

create function gatepost.has_unaddressed(behind pg_snapshot, began pg_snapshot, seen pg_snapshot)
returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
    running constant xid8[] := array(select pg_snapshot_xip(behind));
begin
    if pg_snapshot_xmax(began) <= pg_snapshot_xmin(behind) then
        -- Those that `seen` sees are addressed.
        return exists (
            select
            from gatepost.change c
            where c.gateway_id = gatepost.nobody()
                and c.xid >= greatest(pg_snapshot_xmax(behind), pg_snapshot_xmax(seen))
                and c.xid < pg_snapshot_xmax(pg_current_snapshot())
        ) or exists (
            select
            from gatepost.change c
            where c.gateway_id = gatepost.nobody()
                and c.xid = any (running || array(select pg_snapshot_xip(seen)))
                and not pg_visible_in_snapshot(c.xid, behind)
                and not pg_visible_in_snapshot(c.xid, seen)
        );
    end if;
    return exists (
        select
        from gatepost.change c
        where c.gateway_id = gatepost.nobody() and c.xid >= pg_snapshot_xmax(behind)
            and c.xid < pg_snapshot_xmax(pg_current_snapshot())
    ) or exists (
        select
        from gatepost.change c
        where c.gateway_id = gatepost.nobody() and c.xid = any (running)
    );
end $$;
comment on function gatepost.has_unaddressed(pg_snapshot, pg_snapshot, pg_snapshot) is
    'Whether a mark has come since `behind` that is for no gateway yet, though marks are addressed since `began` as far as `seen` sees.';

revoke execute on all functions in schema gatepost from public;

reset role;
