-- What of the user's tables we may read and write, and the views that read them. At each migration:
-- a table that the control plane made anew has lost the rights, and the views still read the old one.

set local search_path = pg_catalog, pg_temp;

grant usage on schema public to gatepost_owner;
grant select (id, username, is_active, deleted_at) on public.users to gatepost_owner;
grant select (id, user_id, name, status, approved_at, revoked_at, deleted_at, last_seen_at,
    last_connected_at) on public.devices to gatepost_owner;
grant update (last_seen_at, last_connected_at) on public.devices to gatepost_owner;
grant select (id, device_id, gateway_id, public_key, assigned_ip, preshared_key_ciphertext,
    allowed_ips, dns_servers, created_at, deleted_at) on public.wireguard_peers to gatepost_owner;
grant select (id, name, endpoint, public_key, listen_port, vpn_cidr, dns_servers, is_active,
    last_sync_at, deleted_at) on public.gateways to gatepost_owner;
grant insert (id, name, endpoint, public_key, listen_port, vpn_cidr, dns_servers)
    on public.gateways to gatepost_owner;
grant update (endpoint, public_key, listen_port, vpn_cidr, dns_servers, last_sync_at, updated_at)
    on public.gateways to gatepost_owner;
grant select (id, gateway_id, device_id, address, status) on public.ip_allocations to gatepost_owner;
grant select (id, name, priority, effect, is_active, full_tunnel, deleted_at)
    on public.policies to gatepost_owner;
grant select (id, policy_id, target_type, target_id) on public.policy_targets to gatepost_owner;
grant select (id, policy_id, destination) on public.policy_destinations to gatepost_owner;
grant select (id, deleted_at) on public.groups to gatepost_owner;
grant select (id, group_id, user_id) on public.group_memberships to gatepost_owner;
grant select (category, key, value) on public.settings to gatepost_owner;
grant insert (id, actor_device_id, event_type, entity_type, entity_id, status, ip_address, message,
    metadata) on public.audit_logs to gatepost_owner;

-- A further column of the user's may count by a sequence.
do $$
declare
    counter regclass;
begin
    for counter in
        select distinct d.refobjid::regclass
        from pg_attrdef a
        join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = a.oid
            and d.refclassid = 'pg_class'::regclass
        join pg_class s on s.oid = d.refobjid and s.relkind = 'S'
        where a.adrelid in ('public.audit_logs'::regclass, 'public.gateways'::regclass)
    loop
        execute format('grant usage on sequence %s to gatepost_owner', counter);
    end loop;
end $$;

set local role gatepost_owner;

-- Live peers of all gateways with what their device and user add. Granted to nobody.
-- `bars` are the bits of the library's `Bars`; `holder` is the device that `ip_allocations` gives
-- the address to: this one, if any row says so.
create or replace view gatepost.peer as
select
    p.gateway_id,
    p.id,
    p.device_id,
    d.user_id,
    d.name as device_name,
    u.username::text as username,
    p.public_key,
    p.assigned_ip,
    p.preshared_key_ciphertext as preshared_key,
    case when array_ndims(p.allowed_ips) > 1 or array_position(p.allowed_ips, null) is not null
        then array(select c from unnest(p.allowed_ips) c where c is not null)
        else p.allowed_ips end as allowed_ips,
    case when array_ndims(p.dns_servers) > 1 or array_position(p.dns_servers, null) is not null
        then array(select s from unnest(p.dns_servers) s where s is not null)
        else p.dns_servers end as dns_servers,
    (
        (d.deleted_at is not null)::integer
        | ((d.status <> 'active')::integer << 1)
        | ((not u.is_active)::integer << 2)
        | ((u.deleted_at is not null)::integer << 3)
        | ((d.approved_at is null)::integer << 4)
    )::smallint as bars,
    case
        when d.revoked_at < '0001-01-01 00:00:00+00' then '0001-01-01 00:00:00+00'
        when d.revoked_at < '9999-12-31 00:00:00+00' then d.revoked_at
    end as revoked_at,
    case
        when held.device_id is not null then held.device_id
        else (
            select a.device_id
            from public.ip_allocations a
            where a.gateway_id = p.gateway_id
                and host(a.address) = host(p.assigned_ip)
                and a.status = 'allocated'
                and a.device_id is not null
            -- As text: else the index by device is walked in this order, however few rows match.
            order by a.device_id::text
            limit 1
        )
    end as holder,
    least(greatest(p.created_at, '0001-01-01 00:00:00+00'), '9999-12-31 00:00:00+00') as created_at
from public.wireguard_peers p
join public.devices d on d.id = p.device_id
join public.users u on u.id = d.user_id
left join public.ip_allocations held
    on held.device_id = p.device_id
    and held.status = 'allocated'
    and held.gateway_id = p.gateway_id
    and host(held.address) = host(p.assigned_ip)
where p.deleted_at is null;

-- Granted to nobody.
create or replace view gatepost.target as
select t.policy_id, t.target_type, t.target_id,
    t.target_type in ('device', 'user', 'group') as known,
    case t.target_type
        when 'device' then not exists (select from public.devices d where d.id = t.target_id)
        when 'user' then not exists (select from public.users u where u.id = t.target_id)
        when 'group' then not exists (select from public.groups g where g.id = t.target_id)
        else false
    end as dangling
from public.policy_targets t;
