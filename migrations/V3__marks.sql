-- One function per table: from the old and new rows of a statement to marks and notifications. An
-- update that touches none of the columns a gateway reads writes nothing and wakes nobody.
--
-- What an update changed is a difference of sets, old less new and new less old, of the columns that
-- are read. A plain join of the two by id would be planned once, for the few rows of the first
-- statement, and be quadratic for the first large one.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

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
            with before as (select * from old_rows where deleted_at is null),
            after as (select * from new_rows where deleted_at is null),
            moved as (
                (select id, gateway_id, device_id from before
                    except select id, gateway_id, device_id from after)
                union all
                (select id, gateway_id, device_id from after
                    except select id, gateway_id, device_id from before)
            ),
            altered as (
                select id, gateway_id, device_id
                from (
                    select id, gateway_id, device_id, public_key, assigned_ip,
                        preshared_key_ciphertext, allowed_ips, dns_servers, created_at
                    from after
                    except
                    select id, gateway_id, device_id, public_key, assigned_ip,
                        preshared_key_ciphertext, allowed_ips, dns_servers, created_at
                    from before
                ) difference
                except
                select id, gateway_id, device_id from moved
            )
            select v.gateway_id, v.kind::gatepost.kind as kind, array_agg(distinct v.device_id) as ids
            from (
                select gateway_id, device_id, 'peer' as kind from moved
                union all
                select gateway_id, device_id, 'device' from altered
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
    perform gatepost.mark(gatepost.everyone(), 'owner', s.ids)
    from (select array_agg(distinct o.user_id) as ids from old_rows o) s
    where s.ids is not null;
    return null;
end $$;

-- The statement that writers make most, in one pass. A full join is never done by nested loops.
create function gatepost.devices_updated() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    touched uuid[];
    owners uuid[];
begin
    select array_agg(coalesce(n.id, o.id)),
        array_agg(o.user_id) filter (where o.user_id is distinct from n.user_id)
            || array_agg(n.user_id) filter (where o.user_id is distinct from n.user_id)
    into touched, owners
    from old_rows o
    full join new_rows n on n.id = o.id
    where (
            n.user_id, n.name, n.status, n.approved_at is null, n.revoked_at, n.deleted_at is null
        ) is distinct from (
            o.user_id, o.name, o.status, o.approved_at is null, o.revoked_at, o.deleted_at is null
        );
    if touched is not null then
        perform gatepost.mark(gatepost.nobody(), 'device', touched);
        perform gatepost.wake_for_devices(touched);
    end if;
    if owners is not null then
        perform gatepost.mark(gatepost.everyone(), 'owner',
            array(select distinct i from unnest(owners) i where i is not null));
    end if;
    return null;
end $$;

create function gatepost.users_updated() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    touched uuid[] := array(
        select id
        from (
            select id, username::text, is_active, deleted_at is null from new_rows
            except
            select id, username::text, is_active, deleted_at is null from old_rows
        ) difference
    );
begin
    if cardinality(touched) > 0 then
        perform gatepost.mark(gatepost.nobody(), 'user', touched);
        perform gatepost.wake_for_users(touched);
    end if;
    return null;
end $$;

create function gatepost.groups_updated() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    touched uuid[] := array(
        select id
        from (
            select id, deleted_at is null from new_rows
            except
            select id, deleted_at is null from old_rows
        ) difference
    );
begin
    if cardinality(touched) > 0 then
        perform gatepost.mark(gatepost.everyone(), 'group', touched);
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
        select array_agg(distinct user_id), array_agg(distinct group_id)
        into users, groups
        from (
            (select id, user_id, group_id from old_rows
                except select id, user_id, group_id from new_rows)
            union all
            (select id, user_id, group_id from new_rows
                except select id, user_id, group_id from old_rows)
        ) difference;
    end if;
    if users is not null then
        perform gatepost.mark(gatepost.nobody(), 'membership', users, groups);
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
                select id
                from (
                    select id, name, priority, effect, is_active, full_tunnel, deleted_at is null
                    from new_rows
                    except
                    select id, name, priority, effect, is_active, full_tunnel, deleted_at is null
                    from old_rows
                ) difference
            );
        end if;
    elsif tg_op = 'INSERT' then
        touched := array(select distinct n.policy_id from new_rows n);
    elsif tg_op = 'DELETE' then
        touched := array(select distinct o.policy_id from old_rows o);
    elsif tg_table_name = 'policy_targets' then
        touched := array(
            select distinct policy_id
            from (
                (select id, policy_id, target_type, target_id from old_rows
                    except select id, policy_id, target_type, target_id from new_rows)
                union all
                (select id, policy_id, target_type, target_id from new_rows
                    except select id, policy_id, target_type, target_id from old_rows)
            ) difference
        );
    else
        touched := array(
            select distinct policy_id
            from (
                (select id, policy_id, destination from old_rows
                    except select id, policy_id, destination from new_rows)
                union all
                (select id, policy_id, destination from new_rows
                    except select id, policy_id, destination from old_rows)
            ) difference
        );
    end if;
    if cardinality(touched) > 0 then
        perform gatepost.mark(gatepost.everyone(), 'policy', touched);
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
            select id
            from (
                select id, name, public_key, listen_port, vpn_cidr, dns_servers, is_active,
                    deleted_at is null
                from new_rows
                except
                select id, name, public_key, listen_port, vpn_cidr, dns_servers, is_active,
                    deleted_at is null
                from old_rows
            ) difference
        );
    end if;
    perform gatepost.mark(id, 'gateway', array[id]), gatepost.wake(id) from unnest(touched) id;
    return null;
end $$;

create function gatepost.allocations_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if tg_op = 'INSERT' then
        perform gatepost.mark_addresses(s.gateway_id, s.addresses, s.own) from (
            select gateway_id, array_agg(distinct address) as addresses,
                bool_or(status = 'gateway') as own
            from new_rows group by gateway_id
        ) s;
    elsif tg_op = 'DELETE' then
        perform gatepost.mark_addresses(s.gateway_id, s.addresses, s.own) from (
            select gateway_id, array_agg(distinct address) as addresses,
                bool_or(status = 'gateway') as own
            from old_rows group by gateway_id
        ) s;
    else
        perform gatepost.mark_addresses(s.gateway_id, s.addresses, s.own) from (
            select gateway_id, array_agg(distinct address) as addresses,
                bool_or(status = 'gateway') as own
            from (
                (select id, gateway_id, device_id, address, status from old_rows
                    except select id, gateway_id, device_id, address, status from new_rows)
                union all
                (select id, gateway_id, device_id, address, status from new_rows
                    except select id, gateway_id, device_id, address, status from old_rows)
            ) difference
            group by gateway_id
        ) s;
    end if;
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
            select category
            from (
                (select id, category, key, value from old_rows
                    except select id, category, key, value from new_rows)
                union all
                (select id, category, key, value from new_rows
                    except select id, category, key, value from old_rows)
            ) difference
        );
    end if;
    touched := array(
        select distinct c
        from unnest(touched) c
        where c in ('gateway', 'policy') or c like 'gateway:%'
    );
    begin
        owners := array(
            select g.id from public.gateways g where 'gateway:' || g.name = any (touched)
        );
    exception when insufficient_privilege or undefined_table or undefined_column then
        owners := '{}'; -- the table was made anew: then for all
    end;
    if cardinality(owners) < cardinality(touched) then
        perform gatepost.mark(gatepost.everyone(), 'setting', '{}');
        perform gatepost.wake_all();
    else
        perform gatepost.mark(id, 'setting', '{}'), gatepost.wake(id) from unnest(owners) id;
    end if;
    return null;
end $$;

create function gatepost.table_truncated() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform gatepost.mark(gatepost.everyone(), 'all', '{}');
    perform gatepost.wake_all();
    return null;
end $$;

reset role;
