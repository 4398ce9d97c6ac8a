-- What agents wait for gives way to migrations of the control plane, and marks cost writers less than before
-- any of them could be survived.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

-- The server ends one of two transactions that wait for each other, after `deadlock_timeout` (1 s): the
-- migration, if the report has waited longer. So a report gives up first.
alter function gatepost.merge_rows(text, text, uuid, uuid[]) set lock_timeout = '100ms';

-- Whom to notify. The locks of the look-up are always given back: a statement that looks like the only one of
-- its transaction is the first of several, if these are sent at once. A lock that it keeps and that a later one
-- raises is a deadlock with a migration that waits in between.
-- The server would plan the look-up anew at each call, because it takes an array of unknown length to be long:
-- that cost more than the look-up itself.
create function gatepost.find_gateways_of_devices(ids uuid[]) returns uuid[]
language plpgsql stable set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
    gateways uuid[];
begin
    begin
        gateways := array(select g from gatepost.gateways_of_devices(ids) g);
        raise sqlstate 'ZG000';
    exception when sqlstate 'ZG000' then
        return gateways;
    end;
end $$;
comment on function gatepost.find_gateways_of_devices(uuid[]) is
    'gatepost.gateways_of_devices() under the rules for hints: the locks of the look-up are given back.';

create function gatepost.find_gateways_of_users(ids uuid[]) returns uuid[]
language plpgsql stable set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
    gateways uuid[];
begin
    begin
        gateways := array(select g from gatepost.gateways_of_users(ids) g);
        raise sqlstate 'ZG000';
    exception when sqlstate 'ZG000' then
        return gateways;
    end;
end $$;
comment on function gatepost.find_gateways_of_users(uuid[]) is
    'gatepost.gateways_of_users() under the rules for hints: the locks of the look-up are given back.';

create or replace function gatepost.hint_all() returns void
language plpgsql set lock_timeout = '50ms' as $$
begin
    perform pg_notify('gatepost_all', '')
    where exists (select from gatepost.listener) and pg_notification_queue_usage() < 0.5;
end $$;

create or replace function gatepost.hint_gateways(gateways uuid[]) returns void
language plpgsql set lock_timeout = '50ms' as $$
begin
    perform pg_notify('gatepost_' || g, '')
    from unnest(gateways) g
    where exists (select from gatepost.listener) and pg_notification_queue_usage() < 0.5;
end $$;

create or replace function gatepost.hint_devices(ids uuid[]) returns void
language plpgsql set lock_timeout = '50ms' as $$
declare
    gateways uuid[];
begin
    if not exists (select from gatepost.listener) or pg_notification_queue_usage() >= 0.5 then
        null;
    elsif cardinality(ids) > 1000 or current_setting('transaction_isolation') = 'serializable' then
        perform pg_notify('gatepost_all', '');
    else
        gateways := gatepost.find_gateways_of_devices(ids);
        perform pg_notify('gatepost_' || g, '') from unnest(gateways) g;
    end if;
end $$;

create or replace function gatepost.hint_users(ids uuid[]) returns void
language plpgsql set lock_timeout = '50ms' as $$
declare
    gateways uuid[];
begin
    if not exists (select from gatepost.listener) or pg_notification_queue_usage() >= 0.5 then
        null;
    elsif cardinality(ids) > 1000 or current_setting('transaction_isolation') = 'serializable' then
        perform pg_notify('gatepost_all', '');
    else
        gateways := gatepost.find_gateways_of_users(ids);
        perform pg_notify('gatepost_' || g, '') from unnest(gateways) g;
    end if;
end $$;

-- Compares the rows of an update in one pass, as gatepost.devices_updated() does.
do $migration$
declare
    present constant text := pg_get_functiondef('gatepost.peers_changed()'::regprocedure);
    begins constant text := '            with before as (';
    ends constant text := '            where gateway_id is not null and device_id is not null;
        end if;';
    first constant integer := position(begins in present);
    last constant integer := position(ends in present);
begin
    if first = 0 or last < first then
        raise exception 'gatepost.peers_changed() is not as expected';
    end if;
    execute left(present, first - 1)
        || $$            select array_agg(v.gateway_id), array_agg(v.kind), array_agg(v.device_id)
            into gateways, kinds, devices
            from (
                select o.gateway_id as old_gateway_id, o.device_id as old_device_id,
                    n.gateway_id, n.device_id,
                    o.id is not null and o.deleted_at is null as was_live,
                    n.id is not null and n.deleted_at is null as is_live,
                    (
                        n.public_key, n.assigned_ip, n.preshared_key_ciphertext, n.allowed_ips,
                        n.dns_servers, n.created_at
                    ) is distinct from (
                        o.public_key, o.assigned_ip, o.preshared_key_ciphertext, o.allowed_ips,
                        o.dns_servers, o.created_at
                    ) as is_altered
                from old_rows o
                full join new_rows n on n.id = o.id
            ) r
            cross join lateral (
                select (r.was_live, r.old_gateway_id, r.old_device_id)
                    is distinct from (r.is_live, r.gateway_id, r.device_id) as is_moved
            ) m
            cross join lateral (
                values
                    (m.is_moved and r.was_live, 'peer'::text, r.old_gateway_id, r.old_device_id),
                    (m.is_moved and r.is_live, 'peer', r.gateway_id, r.device_id),
                    (not m.is_moved and r.is_live and r.is_altered, 'device', r.gateway_id, r.device_id)
            ) v (holds, kind, gateway_id, device_id)
            where v.holds and v.gateway_id is not null and v.device_id is not null;
        end if;$$
        || substr(present, last + length(ends));
end $migration$;

revoke execute on all functions in schema gatepost from public;

reset role;
