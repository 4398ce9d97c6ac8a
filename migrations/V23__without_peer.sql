-- While the guard holds peers that no row names, no mark and no read tells what becomes of their devices: agents ask.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

-- A gateway may ask about a device that is its own: a deleted peer or an address that is allocated still says so. Of any
-- other device whose id it knows it hears that it is revoked, and nothing else.
create function gatepost.own_devices(me uuid, device_ids uuid[]) returns uuid[]
language sql stable security definer set search_path = pg_catalog, pg_temp
set row_security = off set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
    select array(
        select distinct i.id
        from unnest(device_ids) i (id)
        where exists (
                select from public.wireguard_peers p where p.device_id = i.id and p.gateway_id = me offset 0
            )
            or exists (
                select
                from public.ip_allocations a
                where a.device_id = i.id and a.status = 'allocated' and a.gateway_id = me
                offset 0
            )
    )
$$;
comment on function gatepost.own_devices(uuid, uuid[]) is
    'Those of these devices that have a peer of the gateway, also a deleted one, or an address that it allocated. Granted to no role.';

create function gatepost.devices_by_id(device_ids uuid[])
returns table (device_id uuid, user_id uuid, group_ids uuid[], revoked boolean, barred boolean)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set row_security = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
    me constant uuid := gatepost.me();
    own uuid[];
begin
    perform gatepost.at_most(100000, cardinality(device_ids));
    own := gatepost.own_devices(me, device_ids);
    return query
    select d.id, d.user_id,
        array(
            select m.group_id
            from (
                select m.group_id from public.group_memberships m where m.user_id = d.user_id offset 0
            ) m
            where exists (
                select from public.groups g where g.id = m.group_id and g.deleted_at is null offset 0
            )
        ),
        d.status is distinct from 'active' or coalesce(d.revoked_at <= now(), false),
        d.deleted_at is not null
        or exists (
            select
            from public.users u
            where u.id = d.user_id and (u.is_active is not true or u.deleted_at is not null)
            offset 0
        )
    from public.devices d
    where d.id = any (own);
    return query
    select d.id, null::uuid, '{}'::uuid[], true, false
    from (select unnest(device_ids) except select unnest(own)) i (id)
    join public.devices d on d.id = i.id
    where d.status is distinct from 'active' or d.revoked_at <= now();
end $$;
comment on function gatepost.devices_by_id(uuid[]) is
    'Of these devices, if they have a peer of the gateway, also a deleted one, or an address that it allocated: their users, the undeleted groups of these, whether the device is revoked, by its status or by a time of revocation that has come, and whether it is barred, because it or its user is deleted or the user is not active. Of others only those that are revoked, and nothing else.';

-- As gatepost.policies_of(), but for the targets that these devices are. Other targets of the policies are not looked
-- at, however many they are.
do $migration$
declare
    present constant text := pg_get_functiondef('gatepost.policies_of(uuid[])'::regprocedure);
    made text;
begin
    made := replace(
        regexp_replace(present, '\ndeclare\n.*?\n    chosen as \(', $sql$
begin
    return query
    with own as materialized (
        select d.id, d.user_id from public.devices d where d.id = any (device_ids)
    ),
    aims as materialized (
        select 'device' as target_type, o.id as target_id from own o
        union
        select 'user', o.user_id from own o
        union
        select 'group', m.group_id
        from (select distinct o.user_id from own o) u
        cross join lateral (
            select m.group_id from public.group_memberships m where m.user_id = u.user_id offset 0
        ) m
        where exists (
            select from public.groups g where g.id = m.group_id and g.deleted_at is null offset 0
        )
    ),
    concerned as (
        select t.policy_id, true as here, array_agg(a.target_type) as types,
            array_agg(a.target_id) as ids, array_agg(false) as dangling, '{}'::text[] as more_types,
            '{}'::uuid[] as more_ids, '{}'::boolean[] as more_dangling
        from aims a
        cross join lateral (
            select distinct t.policy_id
            from public.policy_targets t
            where t.target_id = a.target_id and t.target_type::text = a.target_type
            offset 0
        ) t
        group by t.policy_id
    ),
    chosen as ($sql$),
        'policies_of(policy_ids uuid[])', 'policies_of_devices(device_ids uuid[])'
    );
    if made !~ 'policies_of_devices' or made !~ 'with own as' or made ~ 'gatepost.me' then
        raise exception 'gatepost.policies_of(uuid[]) is not as expected';
    end if;
    execute made;
end $migration$;
alter function gatepost.policies_of_devices(uuid[]) set plan_cache_mode = force_custom_plan;
alter function gatepost.policies_of_devices(uuid[]) set enable_seqscan = off;
alter function gatepost.policies_of_devices(uuid[]) set enable_bitmapscan = off;
comment on function gatepost.policies_of_devices(uuid[]) is
    'The active policies that apply to these devices, with the targets by which they do. Granted to no role.';

create function gatepost.policies_by_device(device_ids uuid[]) returns setof gatepost.policy_row
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform gatepost.at_most(100000, cardinality(device_ids));
    return query
    select p.*
    from gatepost.policies_of_devices(gatepost.own_devices(gatepost.me(), device_ids)) p;
end $$;
comment on function gatepost.policies_by_device(uuid[]) is
    'The active policies that apply to those of these devices that have a peer of the gateway, also a deleted one, or an address that it allocated, to their users or to the groups of these, with the targets by which they do.';

do $migration$
declare
    present text;
    name text;
begin
    foreach name in array array['devices_by_id', 'policies_by_device'] loop
        present := pg_get_functiondef(format('gatepost.%s(uuid[])', name)::regprocedure);
        execute replace(
            replace(present, name || '(device_ids', name || '(token text, device_ids'),
            'gatepost.me()', 'gatepost.me($1)'
        );
        execute format(
            'comment on function gatepost.%1$s(text, uuid[]) is %2$L', name,
            format('As gatepost.%s(uuid[]), for the gateway of this token.', name)
        );
    end loop;
end $migration$;

revoke execute on all functions in schema gatepost from public;

reset role;
