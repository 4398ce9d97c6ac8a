-- While the guard holds peers that no row names, no mark and no read tells that their devices are revoked: agents ask.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

create function gatepost.revoked_devices(device_ids uuid[]) returns setof uuid
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set row_security = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set jit = off as $$
begin
    -- Also of a device that has a peer of another gateway by now. Only who knows its id can ask for it.
    perform gatepost.me();
    perform gatepost.at_most(100000, cardinality(device_ids));
    return query
    select d.id
    from public.devices d
    where d.id = any (revoked_devices.device_ids)
        and (d.status <> 'active' or d.revoked_at <= now());
end $$;
comment on function gatepost.revoked_devices(uuid[]) is
    'Those of these devices that are revoked: by their status, or by a time of revocation that has come.';

do $migration$
declare
    present constant text := pg_get_functiondef('gatepost.revoked_devices(uuid[])'::regprocedure);
begin
    execute replace(
        replace(present, 'revoked_devices(device_ids', 'revoked_devices(token text, device_ids'),
        'gatepost.me()', 'gatepost.me($1)'
    );
end $migration$;
comment on function gatepost.revoked_devices(text, uuid[]) is
    'As gatepost.revoked_devices(uuid[]), for the gateway of this token.';

revoke execute on all functions in schema gatepost from public;

reset role;
