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
    gatepost.proven(timestamptz, text, text, text, text),
    gatepost.hosts(),
    gatepost.forget_host(text, text),
    gatepost.news(text, text),
    gatepost.words(uuid[], uuid[]),
    gatepost.devices_by_id(uuid[]),
    gatepost.policies_by_device(uuid[]),
    gatepost.prove(timestamptz, text, text, text, text),
    gatepost.follow(boolean),
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
grant select (id, name, deleted_at) on public.groups to gatepost_owner;
grant select (id, group_id, user_id) on public.group_memberships to gatepost_owner;
grant select (category, key, value) on public.settings to gatepost_owner;
grant insert (id, actor_device_id, event_type, entity_type, entity_id, status, ip_address, message,
    metadata, created_at) on public.audit_logs to gatepost_owner;

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
        where a.adrelid in ('public.audit_logs'::regclass, 'public.gateways'::regclass)
    loop
        execute format('grant usage on sequence %s to gatepost_owner', counter);
    end loop;
end $$;
