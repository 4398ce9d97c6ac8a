-- One function per table: from the old and new rows of a statement to marks and notifications. An
-- update that touches none of the columns a gateway reads writes nothing and wakes nobody.

set role gatepost_owner;

create function gatepost.peers_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if tg_op = 'INSERT' then
        perform gatepost.mark(s.gateway_id, 'peer', s.ids), gatepost.wake(s.gateway_id)
        from (
            select n.gateway_id, array_agg(distinct n.device_id) as ids
            from new_rows n
            where n.deleted_at is null
            group by n.gateway_id
        ) s;
    elsif tg_op = 'DELETE' then
        perform gatepost.mark(s.gateway_id, 'peer', s.ids), gatepost.wake(s.gateway_id)
        from (
            select o.gateway_id, array_agg(distinct o.device_id) as ids
            from old_rows o
            where o.deleted_at is null
            group by o.gateway_id
        ) s;
    else
        perform gatepost.mark(s.gateway_id, s.kind, s.ids), gatepost.wake(s.gateway_id)
        from (
            select v.gateway_id, v.kind, array_agg(distinct v.device_id) as ids
            from (
                select side.gateway_id, side.device_id,
                    case when (o.device_id, o.gateway_id, o.deleted_at is null)
                        is distinct from (n.device_id, n.gateway_id, n.deleted_at is null)
                        then 'peer' else 'device' end as kind
                from old_rows o
                full join new_rows n using (id)
                cross join lateral (values
                    (o.gateway_id, o.device_id),
                    (n.gateway_id, n.device_id)
                ) side (gateway_id, device_id)
                where side.gateway_id is not null
                    and not (o.deleted_at is not null and n.deleted_at is not null)
                    and (o.device_id, o.gateway_id, o.public_key, o.assigned_ip,
                        o.preshared_key_ciphertext, o.allowed_ips, o.dns_servers, o.created_at,
                        o.deleted_at is null)
                    is distinct from (n.device_id, n.gateway_id, n.public_key, n.assigned_ip,
                        n.preshared_key_ciphertext, n.allowed_ips, n.dns_servers, n.created_at,
                        n.deleted_at is null)
            ) v
            group by v.gateway_id, v.kind
        ) s;
    end if;
    return null;
end $$;

create function gatepost.devices_inserted() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform gatepost.mark_targets(array(select n.id from new_rows n));
    return null;
end $$;

create function gatepost.devices_deleted() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform gatepost.mark_targets(array(select o.id from old_rows o));
    perform gatepost.mark(null, 'owner', s.ids)
    from (select array_agg(distinct o.user_id) as ids from old_rows o) s
    where s.ids is not null;
    return null;
end $$;

create function gatepost.devices_updated() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    touched uuid[] := array(
        select o.id
        from old_rows o
        join new_rows n using (id)
        where (o.user_id, o.name, o.status, o.approved_at is null, o.revoked_at,
                o.deleted_at is null)
            is distinct from (n.user_id, n.name, n.status, n.approved_at is null, n.revoked_at,
                n.deleted_at is null)
    );
    owners uuid[] := array(
        select side.user_id
        from old_rows o
        join new_rows n using (id)
        cross join lateral (values (o.user_id), (n.user_id)) side (user_id)
        where o.user_id <> n.user_id
        group by side.user_id
    );
begin
    if cardinality(touched) > 0 then
        perform gatepost.mark(null, 'device', touched);
        perform gatepost.wake_for_devices(touched);
    end if;
    if cardinality(owners) > 0 then
        perform gatepost.mark(null, 'owner', owners);
    end if;
    return null;
end $$;

create function gatepost.users_updated() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    touched uuid[] := array(
        select o.id
        from old_rows o
        join new_rows n using (id)
        where (o.username::text, o.is_active, o.deleted_at is null)
            is distinct from (n.username::text, n.is_active, n.deleted_at is null)
    );
begin
    if cardinality(touched) > 0 then
        perform gatepost.mark(null, 'user', touched);
        perform gatepost.wake_for_users(touched);
    end if;
    return null;
end $$;

create function gatepost.groups_updated() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    touched uuid[] := array(
        select o.id
        from old_rows o
        join new_rows n using (id)
        where (o.deleted_at is null) is distinct from (n.deleted_at is null)
    );
begin
    if cardinality(touched) > 0 then
        perform gatepost.mark(null, 'group', touched);
        perform gatepost.wake_all();
    end if;
    return null;
end $$;

-- Users and groups that came to be or are gone: only policies can have named them.
create function gatepost.targets_inserted() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform gatepost.mark_targets(array(select n.id from new_rows n));
    return null;
end $$;

create function gatepost.targets_deleted() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform gatepost.mark_targets(array(select o.id from old_rows o));
    return null;
end $$;

create function gatepost.memberships_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    users uuid[];
    groups uuid[];
begin
    if tg_op = 'INSERT' then
        select array_agg(distinct n.user_id), array_agg(distinct n.group_id)
        into users, groups from new_rows n;
    elsif tg_op = 'DELETE' then
        select array_agg(distinct o.user_id), array_agg(distinct o.group_id)
        into users, groups from old_rows o;
    else
        select array_agg(distinct side.user_id), array_agg(distinct side.group_id)
        into users, groups
        from old_rows o
        full join new_rows n using (id)
        cross join lateral (values
            (o.user_id, o.group_id),
            (n.user_id, n.group_id)
        ) side (user_id, group_id)
        where side.user_id is not null
            and (o.user_id, o.group_id) is distinct from (n.user_id, n.group_id);
    end if;
    if users is not null then
        perform gatepost.mark(null, 'membership', users, groups);
        perform gatepost.wake_for_users(users);
    end if;
    return null;
end $$;

create function gatepost.policies_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    touched uuid[];
begin
    if tg_table_name = 'policies' then
        if tg_op = 'INSERT' then
            touched := array(select n.id from new_rows n);
        elsif tg_op = 'DELETE' then
            touched := array(select o.id from old_rows o);
        else
            touched := array(
                select coalesce(o.id, n.id)
                from old_rows o
                full join new_rows n using (id)
                where (o.name, o.priority, o.effect, o.is_active, o.full_tunnel,
                        o.deleted_at is null, o.id is null)
                    is distinct from (n.name, n.priority, n.effect, n.is_active, n.full_tunnel,
                        n.deleted_at is null, n.id is null)
            );
        end if;
    elsif tg_op = 'INSERT' then
        touched := array(select distinct n.policy_id from new_rows n);
    elsif tg_op = 'DELETE' then
        touched := array(select distinct o.policy_id from old_rows o);
    elsif tg_table_name = 'policy_targets' then
        touched := array(
            select side.policy_id
            from old_rows o
            full join new_rows n using (id)
            cross join lateral (values (o.policy_id), (n.policy_id)) side (policy_id)
            where side.policy_id is not null
                and (o.policy_id, o.target_type, o.target_id)
                is distinct from (n.policy_id, n.target_type, n.target_id)
            group by side.policy_id
        );
    else
        touched := array(
            select side.policy_id
            from old_rows o
            full join new_rows n using (id)
            cross join lateral (values (o.policy_id), (n.policy_id)) side (policy_id)
            where side.policy_id is not null
                and (o.policy_id, o.destination) is distinct from (n.policy_id, n.destination)
            group by side.policy_id
        );
    end if;
    if cardinality(touched) > 0 then
        perform gatepost.mark(null, 'policy', touched);
        perform gatepost.wake_all();
    end if;
    return null;
end $$;

create function gatepost.gateways_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    touched uuid[];
begin
    if tg_op = 'INSERT' then
        touched := array(select n.id from new_rows n);
    elsif tg_op = 'DELETE' then
        touched := array(select o.id from old_rows o);
    else
        touched := array(
            select coalesce(o.id, n.id)
            from old_rows o
            full join new_rows n using (id)
            where (o.name, o.public_key, o.listen_port, o.vpn_cidr, o.dns_servers, o.is_active,
                    o.deleted_at is null, o.id is null)
                is distinct from (n.name, n.public_key, n.listen_port, n.vpn_cidr, n.dns_servers,
                    n.is_active, n.deleted_at is null, n.id is null)
        );
    end if;
    perform gatepost.mark(id, 'gateway', array[id]), gatepost.wake(id) from unnest(touched) id;
    return null;
end $$;

create function gatepost.allocations_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    touched record;
begin
    for touched in
        execute format(
            $sql$
            select v.gateway_id, array_agg(distinct v.address) as addresses,
                bool_or(v.status = 'gateway') as own
            from (%s) v group by v.gateway_id
            $sql$,
            case tg_op
                when 'INSERT' then 'select n.* from new_rows n'
                when 'DELETE' then 'select o.* from old_rows o'
                else $sql$
                    (select o.* from old_rows o left join new_rows n using (id)
                    where (o.gateway_id, o.device_id, o.address, o.status)
                        is distinct from (n.gateway_id, n.device_id, n.address, n.status))
                    union all
                    (select n.* from new_rows n left join old_rows o using (id)
                    where (o.gateway_id, o.device_id, o.address, o.status)
                        is distinct from (n.gateway_id, n.device_id, n.address, n.status))
                $sql$
            end
        )
    loop
        insert into gatepost.change (gateway_id, kind, addresses)
        values (
            touched.gateway_id, 'address',
            case when cardinality(touched.addresses) <= 1000 then touched.addresses end
        );
        if touched.own then
            perform gatepost.mark(touched.gateway_id, 'gateway', array[touched.gateway_id]);
        end if;
        perform gatepost.wake(touched.gateway_id);
    end loop;
    return null;
end $$;

-- A setting of one gateway is marked for that gateway; one whose gateway is not to be seen (it may
-- be on its way in another transaction) is marked for all.
create function gatepost.settings_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    touched text[];
    owners uuid[];
begin
    if tg_op = 'INSERT' then
        touched := array(select n.category from new_rows n);
    elsif tg_op = 'DELETE' then
        touched := array(select o.category from old_rows o);
    else
        touched := array(
            select side.category
            from old_rows o
            full join new_rows n using (id)
            cross join lateral (values (o.category), (n.category)) side (category)
            where side.category is not null
                and (o.category, o.key, o.value) is distinct from (n.category, n.key, n.value)
        );
    end if;
    touched := array(
        select distinct c
        from unnest(touched) c
        where c in ('gateway', 'policy') or c like 'gateway:%'
    );
    owners := array(select g.id from public.gateways g where 'gateway:' || g.name = any (touched));
    if cardinality(owners) < cardinality(touched) then
        perform gatepost.mark(null, 'setting', '{}');
        perform gatepost.wake_all();
    else
        perform gatepost.mark(id, 'setting', '{}'), gatepost.wake(id) from unnest(owners) id;
    end if;
    return null;
end $$;

create function gatepost.table_truncated() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform gatepost.mark(null, 'all', '{}');
    perform gatepost.wake_all();
    return null;
end $$;

reset role;
