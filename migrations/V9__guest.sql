-- No write, migration or restore of the control plane fails because of Gatepost.
--
-- Each trigger has three parts, and only the second one writes:
-- 1. Compare finds what the statement changed. It stands in a block that catches every error: if a
--    column is gone or has another type, the change is unknown. The block writes nothing, so it
--    takes no transaction id. It locks no table, except that the trigger of `settings` looks up
--    gateways under the rules for hints.
-- 2. Mark writes gatepost.change. It stands outside any block, because a block that writes takes a
--    transaction id for each statement. It uses nothing that can be lost: no function of Gatepost,
--    no type in a declaration, no value that is yet to be converted. An unknown change marks
--    everything for all gateways. There is no mark if the table is gone or may not be written.
-- 3. Hint notifies the agents that listen, in a second block. The functions gatepost.hint_*() wait
--    at most 50 ms for a lock, by a SET clause, which leaves the writer's own settings alone.
--
-- No view, function or index depends on a column of the control plane: function bodies are strings,
-- which the server resolves when it runs them.
--
-- A statement that began before this migration may still call gatepost.mark*() and gatepost.wake*(),
-- as the former triggers did. They stay until a later migration.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

create function gatepost.hint_all() returns void
language plpgsql set lock_timeout = '50ms' as $$
begin
    if exists (select from gatepost.listener) and pg_notification_queue_usage() < 0.5 then
        perform pg_notify('gatepost_all', '');
    end if;
end $$;
comment on function gatepost.hint_all() is
    'Notifies all agents that listen. A notification queue that is half full is left alone: a full one fails every commit that notifies.';

create function gatepost.hint_gateways(gateways uuid[]) returns void
language plpgsql set lock_timeout = '50ms' as $$
begin
    if exists (select from gatepost.listener) and pg_notification_queue_usage() < 0.5 then
        perform pg_notify('gatepost_' || g, '') from unnest(gateways) g;
    end if;
end $$;
comment on function gatepost.hint_gateways(uuid[]) is 'Notifies the agents of these gateways.';

create function gatepost.gateways_of_devices(ids uuid[]) returns setof uuid
language sql stable as $$
    select distinct p.gateway_id
    from public.wireguard_peers p
    where p.device_id = any (ids) and p.deleted_at is null
$$;
comment on function gatepost.gateways_of_devices(uuid[]) is
    'Gateways that have a live peer of one of these devices, as far as the caller''s transaction sees.';

create function gatepost.gateways_of_users(ids uuid[]) returns setof uuid
language sql stable as $$
    select distinct p.gateway_id
    from public.devices d
    join public.wireguard_peers p on p.device_id = d.id and p.deleted_at is null
    where d.user_id = any (ids)
$$;
comment on function gatepost.gateways_of_users(uuid[]) is
    'Gateways that have a live peer of one of these users, as far as the caller''s transaction sees.';

create function gatepost.gateways_of_settings(categories text[]) returns setof uuid
language sql stable as $$
    select g.id from public.gateways g where 'gateway:' || g.name = any (categories)
$$;
comment on function gatepost.gateways_of_settings(text[]) is
    'Gateways whose own settings stand under one of these categories.';

-- The functions below read tables of the control plane to find whom to notify, with two precautions.
-- In a serializable transaction such a read could fail the writer's commit, so all are notified. A
-- read locks its table until the transaction ends, and a migration may need that table: if the
-- transaction continues after this statement, an exception (ZG000), caught at once, gives back the
-- lock.

create function gatepost.hint_devices(ids uuid[]) returns void
language plpgsql set lock_timeout = '50ms' as $$
declare
    gateways uuid[];
begin
    if not exists (select from gatepost.listener) or pg_notification_queue_usage() >= 0.5 then
        null;
    elsif cardinality(ids) > 1000 or current_setting('transaction_isolation') = 'serializable' then
        perform pg_notify('gatepost_all', '');
    elsif now() = statement_timestamp() then
        perform pg_notify('gatepost_' || g, '') from gatepost.gateways_of_devices(ids) g;
    else
        begin
            gateways := array(select g from gatepost.gateways_of_devices(ids) g);
            raise sqlstate 'ZG000';
        exception when sqlstate 'ZG000' then
            perform pg_notify('gatepost_' || g, '') from unnest(gateways) g;
        end;
    end if;
end $$;
comment on function gatepost.hint_devices(uuid[]) is
    'Notifies the agents of the gateways that have a live peer of one of these devices.';

create function gatepost.hint_users(ids uuid[]) returns void
language plpgsql set lock_timeout = '50ms' as $$
declare
    gateways uuid[];
begin
    if not exists (select from gatepost.listener) or pg_notification_queue_usage() >= 0.5 then
        null;
    elsif cardinality(ids) > 1000 or current_setting('transaction_isolation') = 'serializable' then
        perform pg_notify('gatepost_all', '');
    elsif now() = statement_timestamp() then
        perform pg_notify('gatepost_' || g, '') from gatepost.gateways_of_users(ids) g;
    else
        begin
            gateways := array(select g from gatepost.gateways_of_users(ids) g);
            raise sqlstate 'ZG000';
        exception when sqlstate 'ZG000' then
            perform pg_notify('gatepost_' || g, '') from unnest(gateways) g;
        end;
    end if;
end $$;
comment on function gatepost.hint_users(uuid[]) is
    'Notifies the agents of the gateways that have a live peer of one of these users.';

create function gatepost.hint_targets(ids uuid[]) returns void
language plpgsql set lock_timeout = '50ms' as $$
declare
    is_named boolean := true;
begin
    if not exists (select from gatepost.listener) or pg_notification_queue_usage() >= 0.5 then
        return;
    elsif cardinality(ids) <= 1000 and current_setting('transaction_isolation') <> 'serializable' then
        begin
            is_named := exists (select from public.policy_targets t where t.target_id = any (ids));
            raise sqlstate 'ZG000';
        exception when sqlstate 'ZG000' then
            null;
        end;
    end if;
    if is_named then
        perform pg_notify('gatepost_all', '');
    end if;
end $$;
comment on function gatepost.hint_targets(uuid[]) is
    'Notifies all agents if a policy names one of these users, devices or groups.';

create function gatepost.find_gateways_of_settings(categories text[]) returns uuid[]
language plpgsql stable set lock_timeout = '50ms' as $$
declare
    gateways uuid[];
begin
    if current_setting('transaction_isolation') <> 'serializable' then
        begin
            gateways := array(select g from gatepost.gateways_of_settings(categories) g);
            raise sqlstate 'ZG000';
        exception when sqlstate 'ZG000' then
            null;
        end;
    end if;
    return gateways;
end $$;
comment on function gatepost.find_gateways_of_settings(text[]) is
    'gatepost.gateways_of_settings() under the rules for hints. Null: the caller''s transaction must not look.';

-- Writes the triggers' functions from one pattern. The identifiers ffffffff-... and 00000000-... are
-- gatepost.everyone() and gatepost.nobody(), spelled out because a mark must not depend on a function.
do $migration$
declare
    pattern constant text := $pattern$
create or replace function gatepost.%1$I() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $body$
declare
    is_known boolean := true;
%2$s
begin
    -- Compare.
    begin
%3$s
        if not %4$s or not has_column_privilege('gatepost.change', 'kind', 'insert') then
            return null;
        end if;
    exception when others then
        is_known := false;
        begin
            if not has_column_privilege('gatepost.change', 'kind', 'insert') then
                return null;
            end if;
        exception when others then
            return null;
        end;
    end;

    -- Mark.
    if is_known then
%5$s
    else
        insert into gatepost.change (gateway_id, kind, ids)
        values ('ffffffff-ffff-ffff-ffff-ffffffffffff', 'all', '{}');
    end if;

    -- Hint.
    begin
        if is_known then
            %6$s
        else
            perform gatepost.hint_all();
        end if;
    exception when others then
        begin
            perform gatepost.hint_all();
        exception when others then
            null;
        end;
    end;
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
            select array_agg(v.gateway_id), array_agg(v.kind), array_agg(v.device_id)
            into gateways, kinds, devices
            from (
                select gateway_id, device_id, 'peer' as kind from moved
                union all
                select gateway_id, device_id, 'device' from altered
            ) v
            where gateway_id is not null and device_id is not null;
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
    'perform gatepost.hint_gateways(gateways);'
),
(
    'devices_inserted',
    '    touched uuid[];',
    '        select array_agg(n.id) into touched from new_rows n where n.id is not null;',
    'touched is not null',
$$        insert into gatepost.change (gateway_id, kind, ids)
        values ('00000000-0000-0000-0000-000000000000', 'target', case when cardinality(touched) <= 1000 then touched end);$$,
    'perform gatepost.hint_targets(touched);'
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
    'perform gatepost.hint_targets(touched);'
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
    'perform gatepost.hint_devices(touched);'
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
    'perform gatepost.hint_users(touched);'
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
    'perform gatepost.hint_all();'
),
(
    -- Only policies can name users and groups that have no peer.
    'targets_inserted',
    '    touched uuid[];',
    '        select array_agg(n.id) into touched from new_rows n where n.id is not null;',
    'touched is not null',
$$        insert into gatepost.change (gateway_id, kind, ids)
        values ('00000000-0000-0000-0000-000000000000', 'target', case when cardinality(touched) <= 1000 then touched end);$$,
    'perform gatepost.hint_targets(touched);'
),
(
    'targets_deleted',
    '    touched uuid[];',
    '        select array_agg(o.id) into touched from old_rows o where o.id is not null;',
    'touched is not null',
$$        insert into gatepost.change (gateway_id, kind, ids)
        values ('00000000-0000-0000-0000-000000000000', 'target', case when cardinality(touched) <= 1000 then touched end);$$,
    'perform gatepost.hint_targets(touched);'
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
    'perform gatepost.hint_users(users);'
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
                select array_agg(id)
                into touched
                from (
                    select id, name, priority, effect, is_active, full_tunnel, deleted_at is null
                    from new_rows
                    except
                    select id, name, priority, effect, is_active, full_tunnel, deleted_at is null
                    from old_rows
                ) difference;
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
    'perform gatepost.hint_all();'
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
    'perform gatepost.hint_gateways(touched);'
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
    'perform gatepost.hint_gateways(gateways);'
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
                perform gatepost.hint_all();
            else
                perform gatepost.hint_gateways(gateways);
            end if;$$
),
(
    'table_truncated',
    '',
    '',
    'true',
$$        insert into gatepost.change (gateway_id, kind, ids) values ('ffffffff-ffff-ffff-ffff-ffffffffffff', 'all', '{}');$$,
    'perform gatepost.hint_all();'
)
    ) as t (name, variables, compare, is_marked, mark, hint)
    loop
        execute format(pattern, trigger_function.name, trigger_function.variables,
            trigger_function.compare, trigger_function.is_marked, trigger_function.mark,
            trigger_function.hint);
    end loop;
end $migration$;

-- What agents read.

-- Without settings of its own, so that the server plans it together with the query that calls it.
create function gatepost.live_peers()
returns table (
    gateway_id uuid,
    id uuid,
    device_id uuid,
    user_id uuid,
    device_name text,
    username text,
    public_key text,
    assigned_ip inet,
    preshared_key text,
    allowed_ips cidr[],
    dns_servers text[],
    bars smallint,
    revoked_at timestamptz,
    is_held boolean,
    created_at timestamptz
)
language sql stable as $$
    select
        p.gateway_id,
        p.id,
        p.device_id,
        d.user_id,
        d.name::text,
        u.username::text,
        p.public_key::text,
        p.assigned_ip::inet,
        p.preshared_key_ciphertext::text,
        case when array_ndims(p.allowed_ips) > 1 or array_position(p.allowed_ips, null) is not null
            then array(select c from unnest(p.allowed_ips) c where c is not null)
            else p.allowed_ips end::cidr[],
        case when array_ndims(p.dns_servers) > 1 or array_position(p.dns_servers, null) is not null
            then array(select s from unnest(p.dns_servers) s where s is not null)
            else p.dns_servers end::text[],
        (
            (d.deleted_at is not null)::integer
            | ((d.status <> 'active')::integer << 1)
            | ((not u.is_active)::integer << 2)
            | ((u.deleted_at is not null)::integer << 3)
            | ((d.approved_at is null)::integer << 4)
        )::smallint,
        case
            when d.revoked_at < '0001-01-01 00:00:00+00' then '0001-01-01 00:00:00+00'
            when d.revoked_at < '9999-12-31 00:00:00+00' then d.revoked_at
        end,
        held.device_id is not null,
        least(greatest(p.created_at, '0001-01-01 00:00:00+00'), '9999-12-31 00:00:00+00')
    from public.wireguard_peers p
    join public.devices d on d.id = p.device_id
    join public.users u on u.id = d.user_id
    left join public.ip_allocations held
        on held.device_id = p.device_id
        and held.status = 'allocated'
        and held.gateway_id = p.gateway_id
        and host(held.address) = host(p.assigned_ip)
    where p.deleted_at is null
$$;
comment on function gatepost.live_peers() is
    'Peers of all gateways that are not deleted, with what their device and user add. `bars` are the bits of the library''s `Bars`; `is_held`: ip_allocations gives the address to the peer''s own device.';

create or replace function gatepost.snapshot_peers() returns setof gatepost.peer_row
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set row_security = off set plan_cache_mode = force_custom_plan
set jit = off set work_mem = '64MB' as $$
declare
    me constant uuid := gatepost.me();
begin
    return query
    select l.id, l.device_id, l.user_id, l.device_name, l.username, l.public_key, l.assigned_ip,
        l.preshared_key, l.allowed_ips, l.dns_servers, l.bars, l.revoked_at,
        case when l.is_held then l.device_id else other.device_id end, l.created_at
    from gatepost.live_peers() l
    left join (
        select host(a.address) as host, min(a.device_id::text)::uuid as device_id
        from public.ip_allocations a
        where a.gateway_id = me and a.status = 'allocated' and a.device_id is not null
        group by host(a.address)
    ) other on other.host = host(l.assigned_ip)
    where l.gateway_id = me;
end $$;

-- The settings make the server start from the ids and use indexes, whatever their number.
create or replace function gatepost.peers_by_device(device_ids uuid[]) returns setof gatepost.peer_row
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set row_security = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set jit = off as $$
declare
    me constant uuid := gatepost.me();
begin
    return query
    select l.id, l.device_id, l.user_id, l.device_name, l.username, l.public_key, l.assigned_ip,
        l.preshared_key, l.allowed_ips, l.dns_servers, l.bars, l.revoked_at,
        case when l.is_held then l.device_id else (
            select a.device_id
            from public.ip_allocations a
            where a.gateway_id = me
                and a.address = any (array(
                    select set_masklen(l.assigned_ip, bits)
                    from generate_series(0, case family(l.assigned_ip) when 4 then 32 else 128 end) bits
                ))
                and a.status = 'allocated'
                and a.device_id is not null
            -- As text: else the index by device is walked in this order, however few rows match.
            order by a.device_id::text
            limit 1
        ) end,
        l.created_at
    from gatepost.live_peers() l
    where l.gateway_id = me and l.device_id = any (device_ids);
end $$;

create or replace function gatepost.policies_of(policy_ids uuid[]) returns setof gatepost.policy_row
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set row_security = off set jit = off as $$
declare
    me constant uuid := gatepost.me();
    devices constant uuid[] := array(
        select distinct t.target_id
        from public.policy_targets t
        where t.policy_id = any (policy_ids) and t.target_type = 'device'
            and exists (
                select
                from public.wireguard_peers p
                where p.device_id = t.target_id and p.gateway_id = me and p.deleted_at is null
            )
    );
    users constant uuid[] := array(
        select distinct t.target_id
        from public.policy_targets t
        where t.policy_id = any (policy_ids) and t.target_type = 'user'
            and exists (
                select
                from public.devices d
                join public.wireguard_peers p on p.device_id = d.id
                where d.user_id = t.target_id and p.gateway_id = me and p.deleted_at is null
            )
    );
    groups constant uuid[] := gatepost.groups_here(me, array(
        select distinct t.target_id
        from public.policy_targets t
        where t.policy_id = any (policy_ids) and t.target_type = 'group'
    ));
begin
    return query
    with judged as (
        select t.policy_id, t.target_type::text as target_type, t.target_id,
            t.target_type in ('device', 'user', 'group') as known,
            case t.target_type
                when 'device' then t.target_id = any (devices)
                when 'user' then t.target_id = any (users)
                when 'group' then t.target_id = any (groups)
                else false
            end as here,
            case t.target_type
                when 'device' then not exists (select from public.devices d where d.id = t.target_id)
                when 'user' then not exists (select from public.users u where u.id = t.target_id)
                when 'group' then not exists (select from public.groups g where g.id = t.target_id)
                else false
            end as dangling
        from public.policy_targets t
        where t.policy_id = any (policy_ids)
    ),
    concerned as (
        select j.policy_id, array_agg(j.target_type) as types, array_agg(j.target_id) as ids,
            array_agg(not j.here and j.dangling) as dangling
        from judged j
        where j.here or not j.known or j.dangling
        group by j.policy_id
    )
    select p.id, p.name::text, p.priority::integer, p.effect::text, p.full_tunnel,
        array(select x.destination::cidr from public.policy_destinations x where x.policy_id = p.id),
        c.types, c.ids, c.dangling
    from concerned c
    join public.policies p on p.id = c.policy_id
    where p.is_active and p.deleted_at is null;
end $$;

-- A cursor is the pg_snapshot of the last read: every mark whose transaction that snapshot did not see
-- is new, whatever the order of commits.
create or replace function gatepost.changes(
    since text,
    since_epoch text,
    out cursor text,
    out epoch text,
    out taken_at timestamptz,
    out everything text,
    out devices uuid[],
    out users uuid[],
    out policies uuid[]
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set row_security = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set jit = off as $$
declare
    me constant uuid := gatepost.me();
    seen constant pg_snapshot := since::pg_snapshot;
    marks gatepost.change[];
    moved uuid[]; -- devices whose peers here came, went or moved
    altered uuid[]; -- devices whose peers, if they are here, read otherwise
    altered_users uuid[]; -- users whose peers, if they are here, read otherwise
    owners uuid[]; -- users who may own a peer here only now, or no longer
    members uuid[]; -- users who, if they own a peer here, are in other groups now
    altered_groups uuid[]; -- deleted or restored
    targets uuid[]; -- what policies may name and match otherwise now
    addresses inet[]; -- allocated otherwise, in every notation that wireguard_peers may use
begin
    cursor := pg_current_snapshot()::text;
    epoch := gatepost.epoch();
    taken_at := now();
    devices := '{}';
    users := '{}';
    policies := '{}';
    everything := gatepost.unusable(seen, since_epoch);
    if everything is not null then
        return;
    end if;

    marks := gatepost.marks_since(me, seen);
    if cardinality(marks) = 0 then
        return;
    end if;
    if cardinality(marks) > 5000 then
        everything := 'more than 5000 marks';
        return;
    end if;
    select case m.kind
            when 'all' then 'a table was truncated or altered'
            when 'gateway' then 'the gateway''s row changed'
            when 'setting' then 'a setting changed'
            else 'more than 1000 rows changed in one statement (' || m.kind || ')'
        end
    into everything
    from unnest(marks) m
    where m.kind in ('all', 'gateway', 'setting') or (m.ids is null and m.addresses is null)
    limit 1;
    if everything is not null then
        return;
    end if;

    select
        coalesce(array_agg(distinct i) filter (where m.kind = 'peer'), '{}'),
        coalesce(array_agg(distinct i) filter (where m.kind = 'device'), '{}'),
        coalesce(array_agg(distinct i) filter (where m.kind = 'user'), '{}'),
        coalesce(array_agg(distinct i) filter (where m.kind = 'owner'), '{}'),
        coalesce(array_agg(distinct i) filter (where m.kind = 'membership'), '{}'),
        coalesce(array_agg(distinct i) filter (where m.kind = 'group'), '{}'),
        coalesce(array_agg(distinct i) filter (where m.kind = 'target'), '{}'),
        coalesce(array_agg(distinct i) filter (where m.kind = 'policy'), '{}')
    into moved, altered, altered_users, owners, members, altered_groups, targets, policies
    from unnest(marks) m, unnest(m.ids) i;
    addresses := array(
        select distinct set_masklen(a, bits)
        from unnest(marks) m, unnest(m.addresses) a,
            generate_series(0, case family(a) when 4 then 32 else 128 end) bits
    );

    devices := moved || array(
        select p.device_id
        from public.wireguard_peers p
        where p.gateway_id = me and p.deleted_at is null and p.device_id = any (altered)
        union
        select p.device_id
        from public.devices d
        join public.wireguard_peers p on p.device_id = d.id
        where d.user_id = any (altered_users) and p.gateway_id = me and p.deleted_at is null
        union
        select p.device_id
        from public.wireguard_peers p
        where p.gateway_id = me and p.deleted_at is null and p.assigned_ip = any (addresses)
        except
        select i from unnest(moved) i
    );
    -- Most changes are of devices alone: no group and no policy is looked at for those.
    if cardinality(moved || owners || members || altered_groups || targets || policies) > 0 then
        select f.users, f.policies
        into users, policies
        from gatepost.followed(
            me, marks, moved, owners, members, altered_groups, targets, policies
        ) f;
    end if;

    if cardinality(devices) + cardinality(users) + cardinality(policies) > 10000 then
        everything := 'more than 10000 devices, users and policies changed';
        devices := '{}';
        users := '{}';
        policies := '{}';
    end if;
end $$;

drop view if exists gatepost.peer;
drop view if exists gatepost.target;

create function gatepost.can_mark() returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    return has_column_privilege('gatepost_owner', 'gatepost.change', 'kind', 'insert');
exception when undefined_table or undefined_column or undefined_object or invalid_schema_name then
    return false;
end $$;
comment on function gatepost.can_mark() is
    'Whether the triggers can write marks. They ask the same question at each statement.';

create or replace function gatepost.unwatched() returns text[]
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select array(
        select m.relation from gatepost.missing_trigger m
        union
        select w.relation
        from gatepost.watched w
        join pg_subscription_rel r on r.srrelid = to_regclass('public.' || w.relation)
        union
        -- A write to a partition or a child by its own name fires none of the parent's triggers.
        select w.relation
        from gatepost.watched w
        join pg_inherits i on i.inhparent = to_regclass('public.' || w.relation)
        union
        select w.relation
        from gatepost.watched w
        where not has_any_column_privilege(
            'gatepost_owner', to_regclass('public.' || w.relation), 'select'
        )
        union
        select w.relation
        from gatepost.watched w
        where not gatepost.can_mark()
        order by 1
    )
$$;
comment on function gatepost.unwatched() is
    'Tables whose changes are not announced, all or some: a trigger is missing or off, rows arrive by logical replication or stand in partitions, the table was recreated without our rights, or marks cannot be written.';

create function gatepost.misfits() returns text[]
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    with wanted (relation, name, type) as (
        values
            ('users', 'id', 'uuid'),
            ('users', 'username', 'citext'),
            ('users', 'is_active', 'boolean'),
            ('users', 'deleted_at', 'timestamp with time zone'),
            ('devices', 'id', 'uuid'),
            ('devices', 'user_id', 'uuid'),
            ('devices', 'name', 'text'),
            ('devices', 'status', 'text'),
            ('devices', 'last_seen_at', 'timestamp with time zone'),
            ('devices', 'last_connected_at', 'timestamp with time zone'),
            ('devices', 'approved_at', 'timestamp with time zone'),
            ('devices', 'revoked_at', 'timestamp with time zone'),
            ('devices', 'deleted_at', 'timestamp with time zone'),
            ('wireguard_peers', 'id', 'uuid'),
            ('wireguard_peers', 'device_id', 'uuid'),
            ('wireguard_peers', 'gateway_id', 'uuid'),
            ('wireguard_peers', 'public_key', 'text'),
            ('wireguard_peers', 'assigned_ip', 'inet'),
            ('wireguard_peers', 'preshared_key_ciphertext', 'text'),
            ('wireguard_peers', 'allowed_ips', 'cidr[]'),
            ('wireguard_peers', 'dns_servers', 'text[]'),
            ('wireguard_peers', 'created_at', 'timestamp with time zone'),
            ('wireguard_peers', 'deleted_at', 'timestamp with time zone'),
            ('gateways', 'id', 'uuid'),
            ('gateways', 'name', 'text'),
            ('gateways', 'endpoint', 'text'),
            ('gateways', 'public_key', 'text'),
            ('gateways', 'listen_port', 'integer'),
            ('gateways', 'vpn_cidr', 'cidr'),
            ('gateways', 'dns_servers', 'text[]'),
            ('gateways', 'is_active', 'boolean'),
            ('gateways', 'last_sync_at', 'timestamp with time zone'),
            ('gateways', 'deleted_at', 'timestamp with time zone'),
            ('ip_allocations', 'id', 'uuid'),
            ('ip_allocations', 'gateway_id', 'uuid'),
            ('ip_allocations', 'device_id', 'uuid'),
            ('ip_allocations', 'address', 'inet'),
            ('ip_allocations', 'status', 'text'),
            ('policies', 'id', 'uuid'),
            ('policies', 'name', 'text'),
            ('policies', 'priority', 'integer'),
            ('policies', 'effect', 'text'),
            ('policies', 'is_active', 'boolean'),
            ('policies', 'full_tunnel', 'boolean'),
            ('policies', 'deleted_at', 'timestamp with time zone'),
            ('policy_targets', 'id', 'uuid'),
            ('policy_targets', 'policy_id', 'uuid'),
            ('policy_targets', 'target_type', 'text'),
            ('policy_targets', 'target_id', 'uuid'),
            ('policy_destinations', 'id', 'uuid'),
            ('policy_destinations', 'policy_id', 'uuid'),
            ('policy_destinations', 'destination', 'cidr'),
            ('groups', 'id', 'uuid'),
            ('groups', 'deleted_at', 'timestamp with time zone'),
            ('group_memberships', 'id', 'uuid'),
            ('group_memberships', 'group_id', 'uuid'),
            ('group_memberships', 'user_id', 'uuid'),
            ('settings', 'category', 'text'),
            ('settings', 'key', 'text'),
            ('settings', 'value', 'jsonb')
    ),
    compared as (
        select w.relation, w.name, w.type, t.oid as table, a.attname is not null as is_there,
            format_type(a.atttypid, null) as found_type,
            has_column_privilege('gatepost_owner', t.oid, a.attnum, 'select') as may_read
        from wanted w
        left join pg_class t
            on t.oid = to_regclass('public.' || w.relation)
        left join pg_attribute a
            on a.attrelid = t.oid and a.attname = w.name and a.attnum > 0 and not a.attisdropped
    )
    select array(
        select distinct case
            when c.table is null then format('table %s is missing', c.relation)
            when not c.is_there then format('column %s.%s is missing', c.relation, c.name)
            when not c.may_read then format('gatepost_owner may not read %s.%s', c.relation, c.name)
            else format('column %s.%s is %s, not %s', c.relation, c.name, c.found_type, c.type)
        end
        from compared c
        where c.table is null or not c.is_there or not c.may_read
            -- The extension may be in any schema.
            or regexp_replace(c.found_type, '^.*\.', '') <> c.type
        union
        select format('table gatepost.%s is missing', o)
        from unnest(array['change', 'state', 'attached', 'addressed', 'gateway_role', 'said']) o
        where to_regclass('gatepost.' || o) is null
        union
        select 'gatepost_owner may not write gatepost.change' where not gatepost.can_mark()
        order by 1
    )
$$;
comment on function gatepost.misfits() is
    'How the tables differ from what agents need: missing tables, columns and rights, other types. Agents call it after a failed read.';

revoke execute on all functions in schema gatepost from public;
grant execute on function gatepost.misfits() to gatepost_gateway;

reset role;
