-- A mark costs a writer less: one block instead of two, and no statement where an expression does.
--
-- The parts of a trigger are those of `V9__guest.sql`. Hint stands in the block of Compare now, after it, and so
-- comes before Mark, which still stands alone. An error of Compare makes the change unknown; one of Hint does not.
-- A writer therefore holds gatepost.attached while it waits for gatepost.change. Who locks both for himself takes
-- gatepost.attached first, or he and the writer wait for each other.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

-- A scan alone, where `exists` would be a plan within a plan.
create or replace function gatepost.hint_all() returns void
language plpgsql set lock_timeout = '50ms' as $$
begin
    perform pg_notify('gatepost_all', '')
    from gatepost.listener
    where pg_notification_queue_usage() < 0.5
    limit 1;
end $$;

do $migration$
declare
    pattern constant text := $pattern$
create or replace function gatepost.%1$I() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $body$
declare
    is_known boolean := false;
    told boolean; -- An expression costs less than `perform`, and this one needs no cast.
%2$s
begin
    begin
        -- Compare.
%3$s
        if not %4$s
            or has_column_privilege('gatepost.change'::regclass, 'kind', 'insert') is not true
        then
            return null;
        end if;
        is_known := true;

        -- Hint.
        %6$s
    exception when others then
        if not is_known then
            begin
                if has_column_privilege('gatepost.change'::regclass, 'kind', 'insert') is not true then
                    return null;
                end if;
            exception when others then
                return null;
            end;
        end if;
        begin
            perform gatepost.hint_all();
        exception when others then
            null;
        end;
    end;

    -- Mark.
    if is_known then
%5$s
    else
        insert into gatepost.change (gateway_id, kind, ids)
        values ('ffffffff-ffff-ffff-ffff-ffffffffffff', 'all', '{}');
    end if;
    return null;
end $body$
$pattern$;
    trigger_function record;
begin
    for trigger_function in select * from (values
(
    'peers_changed',
$$    gateways uuid[];
    kinds text[];
    devices uuid[];$$,
$$        if tg_op = 'INSERT' then
            select array_agg(n.gateway_id), array_agg('peer'::text), array_agg(n.device_id)
            into gateways, kinds, devices
            from new_rows n
            where n.deleted_at is null and n.gateway_id is not null and n.device_id is not null;
        elsif tg_op = 'DELETE' then
            select array_agg(o.gateway_id), array_agg('peer'::text), array_agg(o.device_id)
            into gateways, kinds, devices
            from old_rows o
            where o.deleted_at is null and o.gateway_id is not null and o.device_id is not null;
        else
            select array_agg(v.gateway_id), array_agg(v.kind), array_agg(v.device_id)
            into gateways, kinds, devices
            from (
                select o.gateway_id as old_gateway_id, o.device_id as old_device_id,
                    n.gateway_id, n.device_id,
                    o.id is not null and o.deleted_at is null as was_live,
                    n.id is not null and n.deleted_at is null as is_live,
                    (
                        n.public_key, n.assigned_ip, n.preshared_key_ciphertext, n.allowed_ips,
                        n.dns_servers, n.created_at
                    ) is distinct from (
                        o.public_key, o.assigned_ip, o.preshared_key_ciphertext, o.allowed_ips,
                        o.dns_servers, o.created_at
                    ) as is_altered
                from old_rows o
                full join new_rows n on n.id = o.id
            ) r
            cross join lateral (
                select (r.was_live, r.old_gateway_id, r.old_device_id)
                    is distinct from (r.is_live, r.gateway_id, r.device_id) as is_moved
            ) m
            cross join lateral (
                values
                    (m.is_moved and r.was_live, 'peer'::text, r.old_gateway_id, r.old_device_id),
                    (m.is_moved and r.is_live, 'peer', r.gateway_id, r.device_id),
                    (not m.is_moved and r.is_live and r.is_altered, 'device', r.gateway_id, r.device_id)
            ) v (holds, kind, gateway_id, device_id)
            where v.holds and v.gateway_id is not null and v.device_id is not null;
        end if;$$,
    'gateways is not null',
$$        if cardinality(devices) = 1 then
            insert into gatepost.change (gateway_id, kind, ids)
            values (gateways[1], kinds[1]::gatepost.kind, devices);
        else
            insert into gatepost.change (gateway_id, kind, ids)
            select m.gateway, m.kind::gatepost.kind,
                case when count(distinct m.device) <= 1000 then array_agg(distinct m.device) end
            from unnest(gateways, kinds, devices) m (gateway, kind, device)
            group by m.gateway, m.kind;
        end if;$$,
    'told := gatepost.hint_gateways(gateways) is not null;'
),
(
    'devices_inserted',
    '    touched uuid[];',
    '        select array_agg(n.id) into touched from new_rows n where n.id is not null;',
    'touched is not null',
$$        insert into gatepost.change (gateway_id, kind, ids)
        values ('00000000-0000-0000-0000-000000000000', 'target', case when cardinality(touched) <= 1000 then touched end);$$,
    'told := gatepost.hint_targets(touched) is not null;'
),
(
    'devices_deleted',
$$    touched uuid[];
    owners uuid[];$$,
$$        select array_agg(o.id), array_agg(distinct o.user_id) filter (where o.user_id is not null)
        into touched, owners
        from old_rows o
        where o.id is not null;$$,
    'touched is not null',
$$        insert into gatepost.change (gateway_id, kind, ids)
        values ('00000000-0000-0000-0000-000000000000', 'target', case when cardinality(touched) <= 1000 then touched end);
        if owners is not null then
            insert into gatepost.change (gateway_id, kind, ids)
            values ('ffffffff-ffff-ffff-ffff-ffffffffffff', 'owner', case when cardinality(owners) <= 1000 then owners end);
        end if;$$,
    'told := gatepost.hint_targets(touched) is not null;'
),
(
    -- The most frequent statement, in one pass. The server never runs a full join as nested loops.
    'devices_updated',
$$    touched uuid[];
    owners uuid[];$$,
$$        select array_agg(coalesce(n.id, o.id)),
            array_agg(o.user_id) filter (where o.user_id is distinct from n.user_id)
                || array_agg(n.user_id) filter (where o.user_id is distinct from n.user_id)
        into touched, owners
        from old_rows o
        full join new_rows n on n.id = o.id
        where (
                n.user_id, n.name, n.status, n.approved_at is null, n.revoked_at,
                n.deleted_at is null
            ) is distinct from (
                o.user_id, o.name, o.status, o.approved_at is null, o.revoked_at,
                o.deleted_at is null
            );
        if owners is not null then
            owners := array(select distinct i from unnest(owners) i where i is not null);
        end if;$$,
    'touched is not null',
$$        insert into gatepost.change (gateway_id, kind, ids)
        values ('00000000-0000-0000-0000-000000000000', 'device', case when cardinality(touched) <= 1000 then touched end);
        if owners is not null then
            insert into gatepost.change (gateway_id, kind, ids)
            values ('ffffffff-ffff-ffff-ffff-ffffffffffff', 'owner', case when cardinality(owners) <= 1000 then owners end);
        end if;$$,
    'told := gatepost.hint_devices(touched) is not null;'
),
(
    'users_updated',
    '    touched uuid[];',
$$        select array_agg(id)
        into touched
        from (
            select id, username::text, is_active, deleted_at is null from new_rows
            except
            select id, username::text, is_active, deleted_at is null from old_rows
        ) difference;$$,
    'touched is not null',
$$        insert into gatepost.change (gateway_id, kind, ids)
        values ('00000000-0000-0000-0000-000000000000', 'user', case when cardinality(touched) <= 1000 then touched end);$$,
    'told := gatepost.hint_users(touched) is not null;'
),
(
    'groups_updated',
    '    touched uuid[];',
$$        select array_agg(id)
        into touched
        from (
            select id, deleted_at is null from new_rows
            except
            select id, deleted_at is null from old_rows
        ) difference;$$,
    'touched is not null',
$$        insert into gatepost.change (gateway_id, kind, ids)
        values ('ffffffff-ffff-ffff-ffff-ffffffffffff', 'group', case when cardinality(touched) <= 1000 then touched end);$$,
    'told := gatepost.hint_all() is not null;'
),
(
    -- Only policies can name users and groups that have no peer.
    'targets_inserted',
    '    touched uuid[];',
    '        select array_agg(n.id) into touched from new_rows n where n.id is not null;',
    'touched is not null',
$$        insert into gatepost.change (gateway_id, kind, ids)
        values ('00000000-0000-0000-0000-000000000000', 'target', case when cardinality(touched) <= 1000 then touched end);$$,
    'told := gatepost.hint_targets(touched) is not null;'
),
(
    'targets_deleted',
    '    touched uuid[];',
    '        select array_agg(o.id) into touched from old_rows o where o.id is not null;',
    'touched is not null',
$$        insert into gatepost.change (gateway_id, kind, ids)
        values ('00000000-0000-0000-0000-000000000000', 'target', case when cardinality(touched) <= 1000 then touched end);$$,
    'told := gatepost.hint_targets(touched) is not null;'
),
(
    'memberships_changed',
$$    users uuid[];
    groups uuid[];$$,
$$        if tg_op = 'INSERT' then
            select array_agg(distinct n.user_id), array_agg(distinct n.group_id)
            into users, groups
            from new_rows n
            where n.user_id is not null and n.group_id is not null;
        elsif tg_op = 'DELETE' then
            select array_agg(distinct o.user_id), array_agg(distinct o.group_id)
            into users, groups
            from old_rows o
            where o.user_id is not null and o.group_id is not null;
        else
            select array_agg(distinct user_id), array_agg(distinct group_id)
            into users, groups
            from (
                (select id, user_id, group_id from old_rows
                    except select id, user_id, group_id from new_rows)
                union all
                (select id, user_id, group_id from new_rows
                    except select id, user_id, group_id from old_rows)
            ) difference
            where user_id is not null and group_id is not null;
        end if;$$,
    'users is not null',
$$        insert into gatepost.change (gateway_id, kind, ids, group_ids)
        select '00000000-0000-0000-0000-000000000000', 'membership', case when listed then users end, case when listed then groups end
        from (select cardinality(users) <= 1000 and cardinality(groups) <= 1000 as listed) l;$$,
    'told := gatepost.hint_users(users) is not null;'
),
(
    'policies_changed',
    '    touched uuid[];',
$$        if tg_table_name = 'policies' then
            if tg_op = 'INSERT' then
                select array_agg(n.id) into touched from new_rows n;
            elsif tg_op = 'DELETE' then
                select array_agg(o.id) into touched from old_rows o;
            else
                select array_agg(coalesce(n.id, o.id))
                into touched
                from old_rows o
                full join new_rows n on n.id = o.id
                where (
                        n.name, n.priority, n.effect, n.is_active, n.full_tunnel, n.deleted_at is null
                    ) is distinct from (
                        o.name, o.priority, o.effect, o.is_active, o.full_tunnel, o.deleted_at is null
                    );
            end if;
        elsif tg_op = 'INSERT' then
            select array_agg(distinct n.policy_id) into touched from new_rows n;
        elsif tg_op = 'DELETE' then
            select array_agg(distinct o.policy_id) into touched from old_rows o;
        elsif tg_table_name = 'policy_targets' then
            select array_agg(distinct policy_id)
            into touched
            from (
                (select id, policy_id, target_type, target_id from old_rows
                    except select id, policy_id, target_type, target_id from new_rows)
                union all
                (select id, policy_id, target_type, target_id from new_rows
                    except select id, policy_id, target_type, target_id from old_rows)
            ) difference;
        else
            select array_agg(distinct policy_id)
            into touched
            from (
                (select id, policy_id, destination from old_rows
                    except select id, policy_id, destination from new_rows)
                union all
                (select id, policy_id, destination from new_rows
                    except select id, policy_id, destination from old_rows)
            ) difference;
        end if;
        touched := array_remove(touched, null);$$,
    'touched is not null',
$$        insert into gatepost.change (gateway_id, kind, ids)
        values ('ffffffff-ffff-ffff-ffff-ffffffffffff', 'policy', case when cardinality(touched) <= 1000 then touched end);$$,
    'told := gatepost.hint_all() is not null;'
),
(
    'gateways_changed',
    '    touched uuid[];',
$$        if tg_op = 'INSERT' then
            select array_agg(n.id) into touched from new_rows n;
        elsif tg_op = 'DELETE' then
            select array_agg(o.id) into touched from old_rows o;
        else
            select array_agg(id)
            into touched
            from (
                select id, name, public_key, listen_port, vpn_cidr, dns_servers, is_active,
                    deleted_at is null
                from new_rows
                except
                select id, name, public_key, listen_port, vpn_cidr, dns_servers, is_active,
                    deleted_at is null
                from old_rows
            ) difference;
        end if;$$,
    'touched is not null',
$$        insert into gatepost.change (gateway_id, kind, ids)
        select id, 'gateway', array[id] from unnest(touched) id where id is not null;$$,
    'told := gatepost.hint_gateways(touched) is not null;'
),
(
    'allocations_changed',
$$    gateways uuid[];
    changed inet[];
    own boolean[];$$,
$$        if tg_op = 'INSERT' then
            select array_agg(gateway_id), array_agg(address), array_agg(status = 'gateway')
            into gateways, changed, own
            from new_rows;
        elsif tg_op = 'DELETE' then
            select array_agg(gateway_id), array_agg(address), array_agg(status = 'gateway')
            into gateways, changed, own
            from old_rows;
        else
            select array_agg(gateway_id), array_agg(address), array_agg(status = 'gateway')
            into gateways, changed, own
            from (
                (select id, gateway_id, device_id, address, status from old_rows
                    except select id, gateway_id, device_id, address, status from new_rows)
                union all
                (select id, gateway_id, device_id, address, status from new_rows
                    except select id, gateway_id, device_id, address, status from old_rows)
            ) difference;
        end if;$$,
    'gateways is not null',
$$        insert into gatepost.change (gateway_id, kind, addresses)
        select m.gateway, 'address',
            case when count(distinct m.address) <= 1000 then array_agg(distinct m.address) end
        from unnest(gateways, changed) m (gateway, address)
        where m.gateway is not null and m.address is not null
        group by m.gateway;
        if true = any (own) then
            insert into gatepost.change (gateway_id, kind, ids)
            select distinct m.gateway, 'gateway'::gatepost.kind, array[m.gateway]
            from unnest(gateways, own) m (gateway, own)
            where m.gateway is not null and m.own;
        end if;$$,
    'told := gatepost.hint_gateways(gateways) is not null;'
),
(
    -- A setting of one gateway is marked for that gateway, and for all gateways if that one cannot be
    -- seen: another transaction may be about to insert it.
    'settings_changed',
$$    touched text[];
    gateways uuid[];$$,
$$        if tg_op = 'INSERT' then
            select array_agg(distinct category)
            into touched
            from new_rows
            where category in ('gateway', 'policy') or category like 'gateway:%';
        elsif tg_op = 'DELETE' then
            select array_agg(distinct category)
            into touched
            from old_rows
            where category in ('gateway', 'policy') or category like 'gateway:%';
        else
            select array_agg(distinct category)
            into touched
            from (
                (select id, category, key, value from old_rows
                    except select id, category, key, value from new_rows)
                union all
                (select id, category, key, value from new_rows
                    except select id, category, key, value from old_rows)
            ) difference
            where category in ('gateway', 'policy') or category like 'gateway:%';
        end if;
        if not touched && array['gateway', 'policy'] then
            gateways := gatepost.find_gateways_of_settings(touched);
            if cardinality(gateways) < cardinality(touched) then
                gateways := null;
            end if;
        end if;$$,
    'touched is not null',
$$        insert into gatepost.change (gateway_id, kind, ids)
        select id, 'setting', '{}' from unnest(coalesce(gateways, array['ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid])) id;$$,
$$if gateways is null then
                told := gatepost.hint_all() is not null;
            else
                told := gatepost.hint_gateways(gateways) is not null;
            end if;$$
),
(
    'table_truncated',
    '',
    '',
    'true',
$$        insert into gatepost.change (gateway_id, kind, ids) values ('ffffffff-ffff-ffff-ffff-ffffffffffff', 'all', '{}');$$,
    'told := gatepost.hint_all() is not null;'
)
    ) as t (name, variables, compare, is_marked, mark, hint)
    loop
        execute format(pattern, trigger_function.name, trigger_function.variables,
            trigger_function.compare, trigger_function.is_marked, trigger_function.mark,
            trigger_function.hint);
    end loop;
end $migration$;

reset role;
