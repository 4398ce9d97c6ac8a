-- Gives a device another public key:
--
--   psql -v user=alice -v device=laptop -v key=PUBLIC_KEY -f rotate-key.sql
--
-- From the commit on the old key is refused. Gateways read wireguard_peers.public_key; the column of
-- the same name in devices is changed along with it.
\set ON_ERROR_STOP on
\set QUIET on
\ir checks.sql
begin;

select pg_temp.are_passed('user', :'user', 'device', :'device', 'key', :'key') \g /dev/null

select pg_temp.device_named(:'user', :'device') as device_id, pg_temp.wireguard_key(:'key') as key \gset

update devices set public_key = :'key', updated_at = now() where id = :'device_id';

-- An envelope is sealed for one public key. Without this line the peer would be quarantined.
update wireguard_peers
set public_key = :'key', preshared_key_ciphertext = null, updated_at = now()
where device_id = :'device_id' and deleted_at is null;

commit;
