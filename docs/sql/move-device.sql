-- Moves a device to another gateway, where it gets the next free address:
--
--   psql -v user=alice -v device=laptop -v gateway=ber-1 -f move-device.sql
--
-- From the commit on it may connect there, and no longer to the old gateway. Its client needs a new
-- profile. A preshared key is removed, because its envelope is valid for the old gateway alone.
\set ON_ERROR_STOP on
\set QUIET on
\ir checks.sql
\ir free-address.sql
begin;

select pg_temp.are_passed('user', :'user', 'device', :'device', 'gateway', :'gateway') \g /dev/null

select id as gateway_id, pg_temp.device_of_one_peer(:'user', :'device') as device_id from gateways
where id = pg_temp.gateway_named(:'gateway') for update \gset

update ip_allocations set status = 'released', released_at = now()
where device_id = :'device_id' and status = 'allocated';

update wireguard_peers
set gateway_id = :'gateway_id', assigned_ip = pg_temp.next_address(:'gateway_id'),
    preshared_key_ciphertext = null, updated_at = now()
where device_id = :'device_id' and deleted_at is null;

insert into ip_allocations (id, gateway_id, device_id, address)
select gen_random_uuid(), gateway_id, device_id, assigned_ip from wireguard_peers
where device_id = :'device_id' and deleted_at is null
on conflict (gateway_id, address) do update
set device_id = excluded.device_id, status = 'allocated', allocated_at = now(), released_at = null;

commit;
select host(assigned_ip) as address from wireguard_peers where device_id = :'device_id' and deleted_at is null;
