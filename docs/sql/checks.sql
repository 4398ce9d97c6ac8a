-- Defines functions that find what a script names, or say what is wrong with the name. The other scripts
-- include this file.

-- A variable that was not passed is empty.
\if :{?gateway} \else \set gateway '' \endif
\if :{?user} \else \set user '' \endif
\if :{?device} \else \set device '' \endif
\if :{?key} \else \set key '' \endif

-- For names and values in turn: all of them must have been passed.
create or replace function pg_temp.are_passed(variadic passed text[]) returns void
language plpgsql as $$
begin
    for number in 1 .. cardinality(passed) by 2 loop
        if passed[number + 1] = '' then
            raise exception 'pass -v %=..., as in the first lines of the script', passed[number];
        end if;
    end loop;
end $$;

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
    -- Compared as the column compares: upper and lower case are the same to citext.
    owner_name users.username%type := wanted_user;
    found uuid[] := array(
        select d.id from devices d join users u on u.id = d.user_id
        where u.username = owner_name and d.name = wanted_device and d.deleted_at is null
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

create or replace function pg_temp.device_of_one_peer(wanted_user text, wanted_device text) returns uuid
language plpgsql as $$
declare
    device uuid := pg_temp.device_named(wanted_user, wanted_device);
    places text[] := array(
        select g.name from wireguard_peers p join gateways g on g.id = p.gateway_id
        where p.device_id = device and p.deleted_at is null order by g.name
    );
begin
    if cardinality(places) <> 1 then
        raise exception 'device "%/%" has % peers (%), not one: change wireguard_peers by hand',
            wanted_user, wanted_device, cardinality(places), array_to_string(places, ', ');
    end if;
    return device;
end $$;

create or replace function pg_temp.device_is_new(wanted_user text, wanted_device text) returns void
language plpgsql as $$
declare
    owner_name users.username%type := wanted_user;
    owner users := (select u from users u where u.username = owner_name);
begin
    if owner.deleted_at is not null then
        raise exception 'user "%" is deleted: set deleted_at to null, and is_active, or choose another name', wanted_user;
    elsif not owner.is_active then
        raise notice 'user "%" is not active: the device cannot connect until then', wanted_user;
    elsif owner.id is null then
        raise notice 'there was no user "%": added', wanted_user;
    end if;
    perform from devices d
    where d.user_id = owner.id and d.name = wanted_device and d.deleted_at is null;
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
