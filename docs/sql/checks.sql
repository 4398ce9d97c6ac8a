-- Defines functions that find what a script names, or say what is wrong with the name. The other scripts
-- include this file.
create or replace function pg_temp.gateway_named(wanted text) returns uuid
language plpgsql as $$
declare
    found uuid := (select g.id from gateways g where g.name = wanted and g.deleted_at is null);
begin
    if found is null then
        raise exception 'no gateway "%"; there are: %', wanted,
            (select coalesce(string_agg(g.name, ', ' order by g.name), 'none') from gateways g where g.deleted_at is null);
    end if;
    return found;
end $$;

create or replace function pg_temp.device_named(wanted_user text, wanted_device text) returns uuid
language plpgsql as $$
declare
    found uuid[] := array(
        select d.id from devices d join users u on u.id = d.user_id
        where u.username = wanted_user and d.name = wanted_device and d.deleted_at is null
    );
begin
    if cardinality(found) = 0 then
        raise exception 'no device "%/%"', wanted_user, wanted_device
            using hint = 'gatepost peers lists them.';
    elsif cardinality(found) > 1 then
        raise exception '% devices are called "%/%": rename or delete all but one', cardinality(found), wanted_user, wanted_device;
    end if;
    return found[1];
end $$;

create or replace function pg_temp.device_is_new(wanted_user text, wanted_device text) returns void
language plpgsql as $$
begin
    perform from devices d join users u on u.id = d.user_id
    where u.username = wanted_user and d.name = wanted_device and d.deleted_at is null;
    if found then
        raise exception 'device "%/%" is there already', wanted_user, wanted_device
            using hint = 'rotate-key.sql gives it another key, move-device.sql another gateway.';
    end if;
end $$;

create or replace function pg_temp.wireguard_key(text text) returns text
language plpgsql as $$
begin
    if text !~ '^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$' then
        raise exception '"%" is no WireGuard public key: pass the line that `wg pubkey` printed', text;
    end if;
    return text;
end $$;
