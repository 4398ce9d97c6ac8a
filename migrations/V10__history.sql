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

revoke execute on all functions in schema gatepost from public;

reset role;
