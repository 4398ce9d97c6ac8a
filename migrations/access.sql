-- Rights on Gatepost's own schema, and what its owner role may read and write of the control plane's
-- tables. Granted at each migration: a restored dump may have lost the former, a recreated table the
-- latter.

set local search_path = pg_catalog, pg_temp;

-- A dump that was restored without rights leaves every function open to PUBLIC.
do $$
declare
    object text;
begin
    for object in
        select c.oid::regclass::text from pg_class c
        where c.relnamespace = 'gatepost'::regnamespace and c.relkind in ('r', 'v')
            and c.relname <> 'schema_history'
    loop
        execute format('revoke all on %s from public', object);
        execute format('grant all on %s to gatepost_owner', object);
    end loop;
    -- Members of gatepost_gateway, as far as their roles exist.
    for object in
        select r.role_name from gatepost.gateway_role r
        join pg_roles present on present.rolname = r.role_name and not present.rolsuper
        where not pg_has_role(present.oid, 'gatepost_gateway', 'member')
    loop
        execute format('grant gatepost_gateway to %I', object);
    end loop;
    -- Logins of pools and bells.
    for object in
        select format('grant %I to %I', l.member_of, l.role_name) from gatepost.login l
        join pg_roles present on present.rolname = l.role_name and not present.rolsuper
        where not pg_has_role(present.oid, l.member_of, 'member')
    loop
        execute object;
    end loop;
end $$;
grant select (version) on gatepost.schema_history to gatepost_owner;
revoke all on schema gatepost from public;
grant usage on schema gatepost to gatepost_gateway, gatepost_bell;
revoke execute on all functions in schema gatepost from public;
grant execute on function
    gatepost.hello(),
    gatepost.snapshot_gateway(),
    gatepost.snapshot_settings(),
    gatepost.snapshot_peers(),
    gatepost.snapshot_memberships(),
    gatepost.snapshot_policies(),
    gatepost.attach(boolean),
    gatepost.poll(text, text),
    gatepost.changes(text, text),
    gatepost.peers_by_device(uuid[]),
    gatepost.memberships_by_user(uuid[]),
    gatepost.policies_by_id(uuid[]),
    gatepost.report(uuid[], timestamptz[], timestamptz[]),
    gatepost.synced(timestamptz, text),
    gatepost.audit(jsonb),
    gatepost.enroll(text, text, text, integer, cidr, text[], boolean),
    gatepost.prune(interval),
    gatepost.unwatched(),
    gatepost.misfits(),
    gatepost.marks(text, text),
    gatepost.lost_marks(text[], text[], uuid[], uuid[], uuid[], timestamptz[]),
    gatepost.merge(),
    gatepost.try_reports(),
    gatepost.changes_among(text, text, uuid[]),
    gatepost.read_changes(text, text, uuid[]),
    gatepost.proven(timestamptz, text, text, text, text),
    gatepost.hosts(),
    gatepost.forget_host(text, text),
    gatepost.news(text, text),
    gatepost.words(uuid[], uuid[]),
    gatepost.devices_by_id(uuid[]),
    gatepost.policies_by_device(uuid[]),
    gatepost.prove(timestamptz, text, text, text, text),
    gatepost.follow(boolean),
    gatepost.heartbeat(timestamptz, text, text, text, text, boolean),
    gatepost.rewritten()
to gatepost_gateway;
grant execute on function
    gatepost.hold_bell(text),
    gatepost.leave_bell(text),
    gatepost.ring(text),
    gatepost.bells(),
    gatepost.unmerged(),
    gatepost.merge_gateway(uuid),
    gatepost.merge_gateway(uuid, integer),
    gatepost.merge_proofs(integer),
    gatepost.merge_events(integer),
    gatepost.look_for_unwatched()
to gatepost_bell;

-- Each of these with a token, too.
do $$
declare
    with_token regprocedure;
begin
    for with_token in
        select p.oid::regprocedure
        from pg_proc p
        where p.pronamespace = 'gatepost'::regnamespace and p.proargnames[1] = 'token'
            and exists (
                select
                from pg_proc o
                where o.pronamespace = p.pronamespace and o.proname = p.proname
                    and o.proargnames[1] is distinct from 'token'
                    and has_function_privilege('gatepost_gateway', o.oid, 'execute')
            )
    loop
        execute format('grant execute on function %s to gatepost_gateway', with_token);
    end loop;
end $$;

grant usage on schema public to gatepost_owner;
-- Of the columns that are there: agents name what they miss, and the next migration grants it.
do $$
declare
    part record;
    granted text;
begin
    for part in
        select *
        from (values
            ('select', 'users', '{id, username, is_active, deleted_at}'::text[]),
            ('select', 'devices', '{id, user_id, name, status, approved_at, revoked_at, deleted_at, last_seen_at,
                last_connected_at}'),
            ('update', 'devices', '{last_seen_at, last_connected_at}'),
            ('select', 'wireguard_peers', '{id, device_id, gateway_id, public_key, assigned_ip,
                preshared_key_ciphertext, allowed_ips, dns_servers, created_at, deleted_at}'),
            ('select', 'gateways', '{id, name, endpoint, public_key, listen_port, vpn_cidr, dns_servers, is_active,
                last_sync_at, deleted_at}'),
            ('insert', 'gateways', '{id, name, endpoint, public_key, listen_port, vpn_cidr, dns_servers}'),
            ('update', 'gateways', '{endpoint, public_key, listen_port, vpn_cidr, dns_servers, last_sync_at,
                updated_at}'),
            ('select', 'ip_allocations', '{id, gateway_id, device_id, address, status}'),
            ('select', 'policies', '{id, name, priority, effect, is_active, full_tunnel, deleted_at}'),
            ('select', 'policy_targets', '{id, policy_id, target_type, target_id}'),
            ('select', 'policy_destinations', '{id, policy_id, destination}'),
            ('select', 'groups', '{id, name, deleted_at}'),
            ('select', 'group_memberships', '{id, group_id, user_id}'),
            ('select', 'settings', '{category, key, value}'),
            ('insert', 'audit_logs', '{id, actor_device_id, event_type, entity_type, entity_id, status, ip_address,
                message, metadata, created_at}')
        ) wanted (verb, relation, names)
    loop
        select string_agg(quote_ident(a.attname), ', ' order by a.attnum) into granted
        from pg_attribute a
        where a.attrelid = to_regclass('public.' || part.relation) and a.attnum > 0
            and not a.attisdropped and a.attname = any (part.names);
        if granted is not null then
            execute format('grant %s (%s) on public.%I to gatepost_owner', part.verb, granted, part.relation);
        end if;
    end loop;
end $$;

-- An additional column may take its default from a sequence.
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
        where a.adrelid in (to_regclass('public.audit_logs'), to_regclass('public.gateways'))
    loop
        execute format('grant usage on sequence %s to gatepost_owner', counter);
    end loop;
end $$;
