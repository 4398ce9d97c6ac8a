-- What an agent may read. Each function acts for the gateway that gatepost.gateway_role binds to
-- session_user, and for no other. To read one instant, call them in one REPEATABLE READ transaction.
-- Row-level security that would hide rows from us is an error, not an empty answer.

grant select (version) on gatepost.schema_history to gatepost_owner;

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

create function gatepost.schema_version() returns integer
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select max(h.version) from gatepost.schema_history h
$$;

-- The gateway the caller acts for. Errors: 25006 this is a standby, GP001 the role is bound to no
-- gateway, GP002 the gateway has no row.
create function gatepost.me() returns uuid
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
    bound record;
begin
    if pg_is_in_recovery() then
        raise exception using
            errcode = '25006',
            message = 'this server is a standby',
            hint = 'name the primary too, and target_session_attrs=read-write';
    end if;
    select r.gateway_id, r.gateway_name into bound
    from gatepost.gateway_role r
    where r.role_name = session_user;
    if not found then
        raise exception using
            errcode = 'GP001',
            message = format('role %s is bound to no gateway', session_user),
            hint = format('run `gatepost grant <gateway> %s`', session_user);
    elsif bound.gateway_id is null
        or not exists (select from public.gateways g where g.id = bound.gateway_id)
    then
        raise exception using
            errcode = 'GP002',
            message = format('there is no gateway named %s', bound.gateway_name),
            hint = 'run `gatepost enroll`';
    end if;
    return bound.gateway_id;
end $$;

-- Changes whenever a snapshot of before may mean something else now: another cluster, a restored
-- backup, a promoted standby, a server that lost its last transactions in a crash. What cannot
-- change while a session lives is asked once for each session: with a thousand sessions the answer
-- costs milliseconds. A role that makes its session remember something else deceives only itself.
create function gatepost.history() returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    server text := current_setting('gatepost.server', true);
begin
    if coalesce(server, '') = '' then
        server := concat_ws('/',
            (select c.system_identifier from pg_control_system() c),
            left(pg_walfile_name(pg_current_wal_insert_lsn()), 8),
            extract(epoch from coalesce(
                (
                    select a.backend_start
                    from pg_stat_activity a
                    where a.backend_type = 'checkpointer'
                ),
                pg_postmaster_start_time()
            )),
            (select d.oid from pg_database d where d.datname = current_database())
        );
        perform set_config('gatepost.server', server, false);
    end if;
    return concat_ws('/', server, (select s.database_epoch from gatepost.state s),
        'gatepost.state'::regclass::oid);
end $$;

-- A cursor belongs to a history and to a gateway.
create function gatepost.epoch() returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    return gatepost.history() || '/' || gatepost.me();
end $$;

create function gatepost.hello(
    out gateway_id uuid,
    out gateway_name text,
    out schema_version integer,
    out server_version integer,
    out epoch text
)
language sql volatile security definer set search_path = pg_catalog, pg_temp
set row_security = off as $$
    select g.id, g.name, gatepost.schema_version(), current_setting('server_version_num')::integer,
        gatepost.epoch()
    from public.gateways g
    where g.id = gatepost.me()
$$;

-- Where a reader stands: its next cursor, the epoch that cursor belongs to, the clock.
create function gatepost.snapshot_gateway(
    out cursor text,
    out epoch text,
    out taken_at timestamptz,
    out id uuid,
    out name text,
    out public_key text,
    out listen_port integer,
    out vpn_cidr cidr,
    out dns_servers text[],
    out active boolean,
    out allocated_address inet
)
language sql volatile security definer set search_path = pg_catalog, pg_temp
set row_security = off as $$
    select pg_current_snapshot()::text, gatepost.epoch(), now(),
        g.id, g.name, g.public_key, g.listen_port, g.vpn_cidr,
        array(select s from unnest(g.dns_servers) s where s is not null),
        g.is_active and g.deleted_at is null,
        (
            select a.address
            from public.ip_allocations a
            where a.gateway_id = g.id and a.device_id is null and a.status = 'gateway'
            order by a.address
            limit 1
        )
    from public.gateways g
    where g.id = gatepost.me()
$$;

create function gatepost.snapshot_settings()
returns table (category text, key text, value jsonb)
language sql stable security definer set search_path = pg_catalog, pg_temp
set row_security = off as $$
    select s.category, s.key, s.value
    from public.settings s
    where s.category in ('gateway', 'policy')
        or s.category = (
            select 'gateway:' || g.name from public.gateways g where g.id = gatepost.me()
        )
    order by s.category, s.key
$$;

create type gatepost.peer_row as (
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
    holder uuid,
    created_at timestamptz
);

create function gatepost.snapshot_peers() returns setof gatepost.peer_row
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set row_security = off set plan_cache_mode = force_custom_plan
set jit = off set work_mem = '64MB' as $$
declare
    me constant uuid := gatepost.me();
begin
    return query
    select v.id, v.device_id, v.user_id, v.device_name, v.username, v.public_key, v.assigned_ip,
        v.preshared_key, v.allowed_ips, v.dns_servers, v.bars, v.revoked_at, v.holder, v.created_at
    from gatepost.peer v
    where v.gateway_id = me;
end $$;

-- Driven from the ids by index, whatever their number: hence the settings.
create function gatepost.peers_by_device(device_ids uuid[]) returns setof gatepost.peer_row
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set row_security = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set jit = off as $$
declare
    me constant uuid := gatepost.me();
begin
    return query
    select v.id, v.device_id, v.user_id, v.device_name, v.username, v.public_key, v.assigned_ip,
        v.preshared_key, v.allowed_ips, v.dns_servers, v.bars, v.revoked_at, v.holder, v.created_at
    from gatepost.peer v
    where v.gateway_id = me and v.device_id = any (device_ids);
end $$;

-- Undeleted groups of the users who own a live peer here. A user without groups has no row.
create function gatepost.snapshot_memberships()
returns table (user_id uuid, group_ids uuid[])
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set row_security = off set plan_cache_mode = force_custom_plan
set jit = off set work_mem = '64MB' as $$
declare
    me constant uuid := gatepost.me();
begin
    return query
    select m.user_id, array_agg(m.group_id)
    from public.group_memberships m
    join public.groups g on g.id = m.group_id and g.deleted_at is null
    where m.user_id in (
        select d.user_id
        from public.wireguard_peers p
        join public.devices d on d.id = p.device_id
        where p.gateway_id = me and p.deleted_at is null
    )
    group by m.user_id;
end $$;

create function gatepost.memberships_by_user(user_ids uuid[])
returns table (user_id uuid, group_ids uuid[])
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set row_security = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set jit = off as $$
declare
    me constant uuid := gatepost.me();
begin
    return query
    select m.user_id, array_agg(m.group_id)
    from public.group_memberships m
    join public.groups g on g.id = m.group_id and g.deleted_at is null
    where m.user_id = any (user_ids)
        and exists (
            select
            from public.devices d
            join public.wireguard_peers p on p.device_id = d.id
            where d.user_id = m.user_id and p.gateway_id = me and p.deleted_at is null
        )
    group by m.user_id;
end $$;

-- An active policy with those of its targets that concern this gateway: they match a live peer
-- here, or they are dangling or of a type nobody knows, so that somebody says so.
create type gatepost.policy_row as (
    id uuid,
    name text,
    priority integer,
    effect text,
    full_tunnel boolean,
    destinations cidr[],
    target_types text[],
    target_ids uuid[],
    dangling boolean[]
);

-- Of these groups, the undeleted ones with a member who owns a live peer of the gateway. Asks group
-- by group where the gateway has many peers, so that the first member found ends the search, and
-- peer by peer where it has few.
create function gatepost.groups_here(me uuid, group_ids uuid[]) returns uuid[]
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set row_security = off as $$
begin
    if exists (
        select
        from public.wireguard_peers p
        where p.gateway_id = me and p.deleted_at is null
        offset 1000
    ) then
        return array(
            select g.id
            from public.groups g
            where g.id = any (group_ids) and g.deleted_at is null
                and exists (
                    select
                    from public.group_memberships m
                    join public.devices d on d.user_id = m.user_id
                    join public.wireguard_peers p on p.device_id = d.id
                    where m.group_id = g.id and p.gateway_id = me and p.deleted_at is null
                )
        );
    end if;
    return array(
        select distinct g.id
        from public.wireguard_peers p
        join public.devices d on d.id = p.device_id
        join public.group_memberships m on m.user_id = d.user_id
        join public.groups g on g.id = m.group_id and g.deleted_at is null
        where p.gateway_id = me and p.deleted_at is null and g.id = any (group_ids)
    );
end $$;

-- Granted to nobody: `gatepost.policies_by_id` and `gatepost.snapshot_policies` ask it.
create function gatepost.policies_of(policy_ids uuid[]) returns setof gatepost.policy_row
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
        select t.*, case t.target_type
                when 'device' then t.target_id = any (devices)
                when 'user' then t.target_id = any (users)
                when 'group' then t.target_id = any (groups)
                else false
            end as here
        from gatepost.target t
        where t.policy_id = any (policy_ids)
    ),
    concerned as (
        select j.policy_id, array_agg(j.target_type) as types, array_agg(j.target_id) as ids,
            array_agg(not j.here and j.dangling) as dangling
        from judged j
        where j.here or not j.known or j.dangling
        group by j.policy_id
    )
    select p.id, p.name, p.priority, p.effect, p.full_tunnel,
        array(select x.destination from public.policy_destinations x where x.policy_id = p.id),
        c.types, c.ids, c.dangling
    from concerned c
    join public.policies p on p.id = c.policy_id
    where p.is_active and p.deleted_at is null;
end $$;

create function gatepost.snapshot_policies() returns setof gatepost.policy_row
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set row_security = off set plan_cache_mode = force_custom_plan
set jit = off set work_mem = '64MB' as $$
begin
    return query
    select v.*
    from gatepost.policies_of(array(
        select p.id from public.policies p where p.is_active and p.deleted_at is null
    )) v;
end $$;

-- Driven from the ids by index, as the other functions for what changed.
create function gatepost.policies_by_id(policy_ids uuid[]) returns setof gatepost.policy_row
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan set enable_seqscan = off as $$
begin
    return query select v.* from gatepost.policies_of(policy_ids) v;
end $$;

reset role;
