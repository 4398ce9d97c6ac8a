-- How much agents read of one row, and in all: the limits of the library's `Limit`. What is more is sent as
-- one more than the limit, whatever it was, so that a row costs as much as its limit at most. Texts are cut.
--
-- An agent of an earlier version takes what is sent instead for the row's own. So it grants nothing either.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

create function gatepost.shortened(value text) returns text
language sql immutable as $$
    select case when octet_length($1) > 1024 then left($1, 257) else $1 end
$$;
comment on function gatepost.shortened(text) is
    'A text that is cut where it is longer than a name may be. Granted to no role.';

create or replace function gatepost.live_peers()
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
        gatepost.shortened(d.name::text),
        gatepost.shortened(u.username::text),
        gatepost.shortened(p.public_key::text),
        p.assigned_ip::inet,
        gatepost.shortened(p.preshared_key_ciphertext::text),
        case when cardinality(p.allowed_ips) > 10000
            then array_fill('0.0.0.0/0'::cidr, array[10001])
            when array_ndims(p.allowed_ips) > 1 or array_position(p.allowed_ips, null) is not null
            then array(select c::cidr from unnest(p.allowed_ips) c where c is not null)
            else p.allowed_ips::cidr[] end,
        case when cardinality(p.dns_servers) > 100 then array_fill(''::text, array[101])
            when pg_column_size(p.dns_servers) > 1024 or array_ndims(p.dns_servers) > 1
                or array_position(p.dns_servers, null) is not null
            then array(
                select gatepost.shortened(s::text) from unnest(p.dns_servers) s where s is not null
            )
            else p.dns_servers::text[] end,
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

create function gatepost.peers_of(me uuid) returns setof gatepost.peer_row
language sql stable as $$
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
    where l.gateway_id = me
$$;
comment on function gatepost.peers_of(uuid) is
    'The live peers of this gateway. The server plans it together with the query that calls it. Granted to no role.';

-- Those that act for a gateway, each without a token and with one.
do $migration$
declare
    key constant text := 'g.public_key';
    dns_servers constant text := 'array(select s from unnest(g.dns_servers) s where s is not null)';
    pattern record;
    caller record;
    present text;
begin
    set local check_function_bodies = off;
    for caller in
        select *
        from (values ('', '', ''), ('token text, ', 'text', '$1')) as c (parameter, type, argument)
    loop
        for pattern in select * from (values
(
    -- Of more peers than the kernel holds, the oldest.
$pattern$
create or replace function gatepost.snapshot_peers(%s) returns setof gatepost.peer_row
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set row_security = off set plan_cache_mode = force_custom_plan
set jit = off set work_mem = '64MB' as $$
declare
    me constant uuid := gatepost.me(%s);
begin
    if exists (
        select
        from public.wireguard_peers p
        where p.gateway_id = me and p.deleted_at is null
        offset 1048576
    ) then
        return query select o.* from gatepost.peers_of(me) o order by o.created_at, o.id limit 1048577;
    else
        return query select o.* from gatepost.peers_of(me) o;
    end if;
end $$
$pattern$,
    rtrim(caller.parameter, ', ')
),
(
    -- Of more policies than the limit, those that deny before those that allow.
$pattern$
create or replace function gatepost.policies_of(%spolicy_ids uuid[])
returns setof gatepost.policy_row
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set row_security = off set jit = off as $$
declare
    me constant uuid := gatepost.me(%s);
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
    with named as (
        select distinct t.policy_id, gatepost.shortened(t.target_type::text) as target_type, t.target_id
        from public.policy_targets t
        where t.policy_id = any (policy_ids) and t.target_id is not null
    ),
    judged as (
        select n.*,
            n.target_type in ('device', 'user', 'group') as known,
            case n.target_type
                when 'device' then n.target_id = any (devices)
                when 'user' then n.target_id = any (users)
                when 'group' then n.target_id = any (groups)
                else false
            end as here,
            case n.target_type
                when 'device' then not exists (select from public.devices d where d.id = n.target_id)
                when 'user' then not exists (select from public.users u where u.id = n.target_id)
                when 'group' then not exists (select from public.groups g where g.id = n.target_id)
                else false
            end as dangling
        from named n
    ),
    concerned as (
        select j.policy_id, bool_or(j.here) as here,
            array_agg(j.target_type) filter (where j.here) as types,
            array_agg(j.target_id) filter (where j.here) as ids,
            array_agg(false) filter (where j.here) as dangling,
            (array_agg(j.target_type) filter (where not j.here))[:10] as more_types,
            (array_agg(j.target_id) filter (where not j.here))[:10] as more_ids,
            (array_agg(j.dangling) filter (where not j.here))[:10] as more_dangling
        from (
            select o.*, bool_or(o.here) over every
                or bool_and(o.dangling or not o.known) over every as is_shown
            from judged o
            window every as (partition by o.policy_id)
        ) j
        where j.is_shown and (j.here or not j.known or j.dangling)
        group by j.policy_id
    ),
    chosen as (
        select p.id, p.name, p.priority, p.effect::text as effect, p.full_tunnel, c.here,
            c.types || c.more_types as types, c.ids || c.more_ids as ids,
            c.dangling || c.more_dangling as dangling
        from concerned c
        join public.policies p on p.id = c.policy_id
        where p.is_active and p.deleted_at is null
        order by p.effect::text = 'allow', p.priority, p.id
        limit 100001
    )
    select p.id, gatepost.shortened(p.name::text), p.priority::integer, gatepost.shortened(p.effect),
        p.full_tunnel and cardinality(d.listed) <= 200000,
        case when cardinality(d.listed) <= 200000 then d.listed
            when p.effect = 'allow' then array_fill('0.0.0.0/32'::cidr, array[200001])
            else array_fill('0.0.0.0/0'::cidr, array[200000]) || '::/0'::cidr end,
        p.types, p.ids, p.dangling
    from chosen p
    cross join lateral (
        select case when p.here then array(
            select x.destination::cidr from public.policy_destinations x where x.policy_id = p.id
            limit 200001
        ) else '{}' end as listed
        -- Else the array is made for each mention of it.
        offset 0
    ) d;
end $$
$pattern$,
    caller.parameter
)
        ) as p (definition, parameter)
        loop
            execute format(pattern.definition, pattern.parameter, caller.argument);
        end loop;

        present := pg_get_functiondef(
            format('gatepost.snapshot_gateway(%s)', caller.type)::regprocedure
        );
        if position(key in present) = 0 or position(dns_servers in present) = 0 then
            raise exception 'gatepost.snapshot_gateway() is not as expected';
        end if;
        present := replace(present, key, 'gatepost.shortened(g.public_key)');
        execute replace(present, dns_servers, $sql$case when cardinality(g.dns_servers) > 100
            then array_fill(''::text, array[101])
            else array(
                select gatepost.shortened(s::text) from unnest(g.dns_servers) s where s is not null
            ) end$sql$);
    end loop;
end $migration$;

-- Reports lock a table for writing before they read it. Who reads first and raises that lock later waits for a
-- migration that came in between, while the migration waits for him: the server then ends one of the two.

create function gatepost.may_write(statement text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '100ms' as $$
begin
    -- Takes the locks of the statement, and fires no trigger.
    execute 'explain ' || statement;
    return true;
exception
    -- The statement itself says what is wrong with it, but for a lock or a deadlock.
    when others then return left(sqlstate, 2) not in ('40', '55');
end $$;
comment on function gatepost.may_write(text) is
    'Locks what this statement writes, for a moment at most. False if others hold it, then nothing is locked. Granted to no role.';

do $migration$
declare
    change record;
    present text;
begin
    for change in
        select f.name::regprocedure, c.part, c.made
        from (values
            ('gatepost.merge_of(uuid, interval)'),
            ('gatepost.merge_page_of(uuid, interval)')
        ) f (name)
        cross join (values
            (
                1,
                $sql$    select * into part from gatepost.merge_part(gateway, 'gateways',$sql$,
                $sql$    if gatepost.may_write('update public.gateways set last_sync_at = now()') then
    select * into part from gatepost.merge_part(gateway, 'gateways',$sql$
            ),
            (
                2,
                $sql$            for no key update of g skip locked
        ));
$sql$,
                $sql$            for no key update of g skip locked
        ));
    end if;
$sql$
            ),
            (
                3,
                $sql$::uuid];
    loop
$sql$,
                $sql$::uuid];
    loop
        exit when not gatepost.may_write(
            'update public.devices set last_seen_at = now(), last_connected_at = now()'
        );
$sql$
            )
        ) c (number, part, made)
        union all
        select 'gatepost.try_reports()'::regprocedure,
            $sql$            execute format('select array(%s)', part.ids) into ids using me;
$sql$,
            $sql$            continue when not gatepost.may_write(
                replace(replace(part.statement, '$1', 'null'), '$2', 'null')
            );
            execute format('select array(%s)', part.ids) into ids using me;
$sql$
    loop
        present := pg_get_functiondef(change.name);
        if position(change.part in present) = 0 then
            raise exception '% is not as expected', change.name;
        end if;
        execute replace(present, change.part, change.made);
    end loop;
end $migration$;

revoke execute on all functions in schema gatepost from public;

reset role;
