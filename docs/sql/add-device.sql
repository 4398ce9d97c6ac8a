-- Adds a device, and its user if there is none of this name:
--
--   psql -v gateway=fra-1 -v user=alice -v device=laptop -v key=PUBLIC_KEY -f add-device.sql
--
-- The device gets the next free address of the gateway. It may connect from the commit on; what it may
-- reach is for policies to say.
\set ON_ERROR_STOP on
\set QUIET on
\ir checks.sql
\ir free-address.sql
begin;

select pg_temp.are_passed('gateway', :'gateway', 'user', :'user', 'device', :'device', 'key', :'key') \g /dev/null

-- Two of these at once must not choose the same address.
select id as gateway_id, pg_temp.wireguard_key(:'key') as key from gateways
where id = pg_temp.gateway_named(:'gateway') for update \gset

select pg_temp.device_is_new(:'user', :'device') \g /dev/null

insert into roles (id, name) values (gen_random_uuid(), 'vpn-user') on conflict (name) do nothing;

-- '!' is the hash of no password: this user cannot log in to an application.
insert into users (id, role_id, username, display_name, password_hash)
select gen_random_uuid(), id, :'user', :'user', '!' from roles where name = 'vpn-user'
on conflict (username) do nothing;

insert into devices (id, user_id, name, platform, device_fingerprint, public_key, approved_at)
select gen_random_uuid(), id, :'device', 'unknown', :'key', :'key', now() from users
where username = :'user' and deleted_at is null
returning id as device_id \gset

insert into wireguard_peers (id, device_id, gateway_id, public_key, assigned_ip)
values (gen_random_uuid(), :'device_id', :'gateway_id', :'key', pg_temp.next_address(:'gateway_id'));

insert into ip_allocations (id, gateway_id, device_id, address)
select gen_random_uuid(), gateway_id, device_id, assigned_ip from wireguard_peers
where device_id = :'device_id' and deleted_at is null
on conflict (gateway_id, address) do update
set device_id = excluded.device_id, status = 'allocated', allocated_at = now(), released_at = null;

commit;
select host(assigned_ip) as address from wireguard_peers where device_id = :'device_id';
