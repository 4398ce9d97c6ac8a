-- The change feed: what changed and for whom, one row per statement and gateway.
--
-- Three rules keep it free of gaps, whatever the commit order, and cheap, whatever the number of
-- gateways.
-- 1. A mark is addressed by what its own row says. `wireguard_peers` names its gateway; a device, a
--    user or a membership does not, so its mark is addressed to nobody yet. Looking gateways up
--    while writing would miss a peer that another transaction has inserted and not yet committed.
-- 2. Marks that are addressed to nobody are looked through by every reader, or, where many follow,
--    addressed once for all of them after their commit: gatepost.address(). A peer that commits
--    later than that brings a mark of its own.
-- 3. A notification is only a hint. It may be addressed by looking up, because the mark stays and is
--    found at the next look. The commits of all who notify queue up one behind the other, and each
--    wakes every session that listens: where many do, gatepost.tell() notifies for all writers.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

-- Whom a database role acts for. A role that is not here acts for nobody, a superuser too.
create table gatepost.gateway_role (
    role_name name primary key,
    gateway_name text not null,
    gateway_id uuid, -- null: granted before the gateway has a row; enroll fills it in
    granted_at timestamptz not null default now()
);

create function gatepost.nobody() returns uuid
language sql immutable parallel safe as $$ select '00000000-0000-0000-0000-000000000000'::uuid $$;

create function gatepost.everyone() returns uuid
language sql immutable parallel safe as $$ select 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid $$;

create type gatepost.kind as enum (
    'all', -- a table was truncated or made anew
    'gateway', -- the gateway's row, or its own address
    'setting',
    'peer', -- ids: devices whose peers here came, went or moved
    'device', -- ids: devices whose peers read otherwise
    'address', -- addresses: allocated otherwise
    'user', -- ids: users whose peers read otherwise
    'owner', -- ids: users who won or lost a device
    'membership', -- ids: users; group_ids: the groups they entered or left
    'group', -- ids: groups deleted or restored
    'target', -- ids: users, devices or groups that came to be or are gone
    'policy' -- ids: policies, their targets or destinations
);

create table gatepost.change (
    xid xid8 not null default pg_current_xact_id(), -- of the top-level transaction
    gateway_id uuid not null, -- gatepost.nobody(): not addressed yet; gatepost.everyone(): all
    kind gatepost.kind not null,
    ids uuid[], -- null (and no addresses): too many to list, read everything
    group_ids uuid[],
    addresses inet[],
    at timestamptz not null default now()
);
-- What agents said is wrong with a row: said again, by an agent that was restarted, it is no news.
create table gatepost.said (
    gateway_id uuid not null,
    entity_id uuid not null,
    event_type text not null,
    digest text not null,
    primary key (gateway_id, entity_id, event_type, digest)
);

create index change_by_gateway on gatepost.change (gateway_id, xid);
create index change_by_xid on gatepost.change (xid);
alter table gatepost.change set (
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_vacuum_scale_factor = 0.02
);

create table gatepost.state (
    one boolean primary key default true check (one),
    database_epoch uuid not null default gen_random_uuid(),
    floor xid8 not null default '0', -- marks of older transactions are pruned
    pruned_at timestamptz not null default now()
);
insert into gatepost.state default values;

-- Which gateways' agents follow this database, and how. One that has not said so for five minutes
-- is gone.
create table gatepost.attached (
    gateway_id uuid primary key,
    listens boolean not null, -- waits for the writers' notifications
    at timestamptz not null
) with (fillfactor = 50);
create index attached_listening on gatepost.attached (gateway_id) where listens;

-- Marks addressed to nobody are addressed since, if `seen` sees them and `since` does not; those
-- whom the marks that `told` sees concern have been notified. All are snapshots of `history`; null:
-- never yet.
create table gatepost.addressed (
    one boolean primary key default true check (one),
    history text,
    since pg_snapshot,
    seen pg_snapshot,
    at timestamptz not null default '-infinity', -- what was committed before is seen
    told pg_snapshot,
    told_by xid8, -- the transaction that notified last
    told_at timestamptz not null default '-infinity',
    rest interval not null default '0' -- until the next notifications
) with (fillfactor = 10);
insert into gatepost.addressed default values;

-- What follows is called by the triggers' functions alone, and runs with their rights and settings:
-- a writer waits for each of them.

-- Writes one mark. More than 1,000 ids cost more to follow than to read everything.
create function gatepost.mark(
    gateway uuid, kind gatepost.kind, ids uuid[], group_ids uuid[] default null
) returns void
language plpgsql as $$
begin
    if cardinality(ids) > 1000 or cardinality(group_ids) > 1000 then
        ids := null;
        group_ids := null;
    end if;
    insert into gatepost.change (gateway_id, kind, ids, group_ids)
    values (gateway, kind, ids, group_ids);
end $$;

-- Who waits for the writers' notifications. A transaction that looked before the first one did does not wake it:
-- its mark is found by the timer.
create view gatepost.listener as
select a.gateway_id from gatepost.attached a where a.listens and a.at > now() - interval '5 minutes';

create function gatepost.wake_all() returns void
language plpgsql as $$
begin
    if exists (select from gatepost.listener) then
        perform pg_notify('gatepost_all', '');
    end if;
end $$;

create function gatepost.wake(gateway uuid) returns void
language plpgsql as $$
begin
    if exists (select from gatepost.listener) then
        perform pg_notify('gatepost_' || gateway, '');
    end if;
end $$;

-- Wakes the gateways that have a peer of one of these devices.
create function gatepost.wake_for_devices(ids uuid[]) returns void
language plpgsql as $$
begin
    if not exists (select from gatepost.listener) then
        return;
    elsif cardinality(ids) > 1000 then
        perform pg_notify('gatepost_all', '');
        return;
    end if;
    perform pg_notify('gatepost_' || g.gateway_id, '') from (
        select distinct p.gateway_id
        from public.wireguard_peers p
        where p.device_id = any (ids) and p.deleted_at is null
    ) g;
exception when insufficient_privilege or undefined_table or undefined_column then
    -- The table that tells whom was made anew. No writer fails for want of a hint.
    perform gatepost.wake_all();
end $$;

-- Wakes the gateways that have a peer of one of these users.
create function gatepost.wake_for_users(ids uuid[]) returns void
language plpgsql as $$
begin
    if not exists (select from gatepost.listener) then
        return;
    elsif cardinality(ids) > 1000 then
        perform pg_notify('gatepost_all', '');
        return;
    end if;
    perform pg_notify('gatepost_' || g.gateway_id, '') from (
        select distinct p.gateway_id
        from public.devices d
        join public.wireguard_peers p on p.device_id = d.id and p.deleted_at is null
        where d.user_id = any (ids)
    ) g;
exception when insufficient_privilege or undefined_table or undefined_column then
    -- The table that tells whom was made anew. No writer fails for want of a hint.
    perform gatepost.wake_all();
end $$;

-- Marks addresses of one gateway that are allocated otherwise now; `own`: its own among them.
create function gatepost.mark_addresses(gateway uuid, addresses inet[], own boolean) returns void
language plpgsql as $$
begin
    insert into gatepost.change (gateway_id, kind, addresses)
    values (gateway, 'address', case when cardinality(addresses) <= 1000 then addresses end);
    if own then
        perform gatepost.mark(gateway, 'gateway', array[gateway]);
    end if;
    perform gatepost.wake(gateway);
end $$;

-- Wakes all where a policy names one of these.
create function gatepost.wake_for_targets(ids uuid[]) returns void
language plpgsql as $$
begin
    if exists (select from public.policy_targets t where t.target_id = any (ids)) then
        perform gatepost.wake_all();
    end if;
exception when insufficient_privilege or undefined_table or undefined_column then
    -- The table that tells whom was made anew. No writer fails for want of a hint.
    perform gatepost.wake_all();
end $$;

-- Marks things that policies may name, and wakes somebody only where a policy does.
create function gatepost.mark_targets(ids uuid[]) returns void
language plpgsql as $$
begin
    if cardinality(ids) = 0 then
        return;
    end if;
    perform gatepost.mark(gatepost.nobody(), 'target', ids);
    perform gatepost.wake_for_targets(ids);
end $$;

reset role;
