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

create function gatepost.await_sync(
    since timestamptz default clock_timestamp(),
    timeout interval default interval '30 seconds',
    out gateway text,
    out last_sync_at timestamptz,
    out is_proven boolean
) returns setof record
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set row_security = off as $$
declare
    deadline constant timestamptz := clock_timestamp() + timeout;
begin
    if pg_current_xact_id_if_assigned() is not null
        or current_setting('transaction_isolation') <> 'read committed'
    then
        raise exception using
            errcode = 'GP007',
            message = 'await_sync() cannot wait in this transaction: gateways see what it wrote after '
                'its commit, and it sees what they write only if it is READ COMMITTED',
            hint = 'commit, then call gatepost.await_sync() in a statement of its own';
    end if;
    -- A time ahead of the clock, from before the clock was set back, proves nothing.
    while clock_timestamp() < deadline and exists (
        select
        from public.gateways g
        where g.is_active and g.deleted_at is null
            and (g.last_sync_at between since and clock_timestamp()) is not true
    ) loop
        perform pg_sleep(0.1);
    end loop;
    return query
    select g.name::text, g.last_sync_at,
        (g.last_sync_at between since and clock_timestamp()) is true
    from public.gateways g
    where g.is_active and g.deleted_at is null
    order by g.name;
end $$;
comment on function gatepost.await_sync(timestamptz, interval) is
    'For the owner, after a commit: waits until each active gateway has proven to follow the database as of `since`, at most for `timeout`. A gateway that has not is returned with is_proven = false.';

revoke execute on all functions in schema gatepost from public;

reset role;
