-- What an agent may write: reports about its own gateway, and nothing that a gateway reads.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

-- Handshakes and session starts of devices with a live peer here; none goes back but from ahead of
-- the database's clock, none lies ahead of that. Of an unbroken series of handshakes the first and
-- the last are enough. Returns the devices whose row another transaction holds: report those again.
create function gatepost.report(
    device_ids uuid[], seen_at timestamptz[], connected_at timestamptz[]
) returns setof uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp
set jit = off as $$
declare
    me constant uuid := gatepost.me();
    free uuid[];
    mine constant uuid[] := array(
        select distinct p.device_id
        from public.wireguard_peers p
        where p.device_id = any (device_ids) and p.gateway_id = me and p.deleted_at is null
    );
begin
    free := array(
        select d.id
        from public.devices d
        where d.id = any (mine)
        order by d.id
        for no key update skip locked
    );
    update public.devices d
    set last_seen_at = greatest(r.last_seen_at, r.seen),
        last_connected_at = greatest(r.last_connected_at, r.connected)
    from (
        select r.id, r.seen, l.last_seen_at, l.last_connected_at,
            -- An agent that has just started does not know when the session began: it is a new one
            -- where the last report is older than a session lasts without a handshake.
            case
                when r.connected is not null then r.connected
                when l.last_connected_at is null or l.last_seen_at is null
                    or r.first > l.last_seen_at + interval '180 seconds' then r.first
            end as connected
        from (
            -- Not least(): that takes now() for a time that is null.
            select r.id,
                min(case when r.seen > now() then now() else r.seen end) as first,
                max(case when r.seen > now() then now() else r.seen end) as seen,
                max(case when r.connected > now() then now() else r.connected end) as connected
            from unnest(device_ids, seen_at, connected_at) r (id, seen, connected)
            group by r.id
        ) r
        join (
            -- What lies ahead of the clock cannot be true.
            select l.id,
                case when l.last_seen_at <= now() then l.last_seen_at end as last_seen_at,
                case when l.last_connected_at <= now() then l.last_connected_at end
                    as last_connected_at
            from public.devices l
            where l.id = any (free)
        ) l on l.id = r.id
    ) r
    where d.id = r.id
        and (greatest(r.last_seen_at, r.seen), greatest(r.last_connected_at, r.connected))
            is distinct from (d.last_seen_at, d.last_connected_at);
    return query select i from unnest(mine) i except select f from unnest(free) f;
end $$;

-- Says that the gateway's agent follows this database, and whether it waits for notifications: to be
-- said again every minute. Returns how many gateways' agents do.
create function gatepost.attach(listens boolean) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    insert into gatepost.attached as a (gateway_id, listens, at)
    values (gatepost.me(), attach.listens, now())
    on conflict (gateway_id) do update set listens = excluded.listens, at = excluded.at;
    delete from gatepost.attached a where a.at < now() - interval '1 day';
    return (
        select count(*) from gatepost.attached a where a.at > now() - interval '5 minutes'
    );
end $$;

-- The kernel was proven equal to what the database held at `proven_at`. Never goes back, and never
-- ahead of the clock. False: another transaction holds the row, say it again; or the proof is of
-- another history of the database than this one of `since_epoch`.
create function gatepost.synced(proven_at timestamptz, since_epoch text default null) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    me constant uuid := gatepost.me();
    proven constant timestamptz := case when proven_at > now() then now() else proven_at end;
begin
    -- What a crash takes back was true before, and is said again.
    perform set_config('synchronous_commit', 'off', true);
    if since_epoch <> gatepost.epoch() then
        return false;
    end if;
    perform from public.gateways g where g.id = me for no key update skip locked;
    if not found then
        return false;
    end if;
    update public.gateways g
    set last_sync_at = proven
    where g.id = me
        and (g.last_sync_at is null or g.last_sync_at < proven or g.last_sync_at > now());
    return true;
end $$;

-- Appends to audit_logs. Each entry is stamped with the gateway that wrote it, whatever it says of
-- itself. Entries: event_type, entity_type, entity_id, device_id, ip_address, status, message,
-- metadata. What is wrong with a peer or a policy is appended once until it is something else.
create function gatepost.audit(entries jsonb) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    me constant uuid := gatepost.me();
    odd text;
begin
    select e.event_type into odd
    from jsonb_to_recordset(entries) e (event_type text)
    where e.event_type is null or e.event_type !~ '^(gateway|peer|policy)\.[a-z_]{1,40}$'
    limit 1;
    if found then
        raise exception using
            errcode = 'GP005',
            message = format('%L is no event of a gateway', odd);
    end if;
    delete from gatepost.said s
    using jsonb_to_recordset(entries) e (event_type text, entity_id uuid, message text)
    where s.gateway_id = me
        and s.entity_id = e.entity_id
        and s.event_type = 'peer.quarantined'
        and (
            e.event_type = 'peer.released'
            or (e.event_type = 'peer.quarantined' and s.digest <> md5(e.message))
        );
    with here as (
        select distinct p.device_id
        from public.wireguard_peers p
        where p.gateway_id = me and p.device_id = any (array(
            select e.device_id from jsonb_to_recordset(entries) e (device_id uuid)
        ))
    ),
    news as (
        insert into gatepost.said (gateway_id, entity_id, event_type, digest)
        select distinct me, e.entity_id, e.event_type, md5(e.message)
        from jsonb_to_recordset(entries) e (event_type text, entity_id uuid, message text)
        where e.event_type in ('peer.quarantined', 'policy.ignored')
            and e.entity_id is not null and e.message is not null
        on conflict do nothing
        returning entity_id, event_type, digest
    )
    insert into public.audit_logs (
        id, actor_device_id, event_type, entity_type, entity_id, status, ip_address, message,
        metadata
    )
    select
        gen_random_uuid(),
        (select h.device_id from here h where h.device_id = e.device_id),
        e.event_type,
        e.entity_type,
        case when e.entity_type = 'gateway' then me else e.entity_id end,
        left(e.status, 40),
        e.ip_address,
        left(e.message, 2000),
        case
            when jsonb_typeof(e.metadata) <> 'object' then '{}'
            when length(e.metadata::text) > 16384 then '{"metadata": "over 16384 bytes, left out"}'
            else coalesce(e.metadata, '{}')
        end || jsonb_build_object('gateway_id', me)
    from jsonb_to_recordset(entries) e (
        event_type text, entity_type text, entity_id uuid, device_id uuid, status text,
        ip_address inet, message text, metadata jsonb
    )
    where e.event_type not in ('peer.quarantined', 'policy.ignored')
        or (e.entity_id, e.event_type, md5(e.message)) in (
            select n.entity_id, n.event_type, n.digest from news n
        );
end $$;

-- Makes the row of gateway `name` say what its host says. Null leaves a column as it is. A role may
-- do that for the gateway it is bound to. A role that owns what is here, or may insert gateways,
-- may do it for any, and is bound to it unless it is bound already. Returns the gateway's id.
create function gatepost.enroll(
    name text,
    public_key text,
    endpoint text default null,
    listen_port integer default null,
    vpn_cidr cidr default null,
    dns_servers text[] default null
) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
    bound text := (
        select coalesce(g.name, r.gateway_name)
        from gatepost.gateway_role r
        left join public.gateways g on g.id = r.gateway_id
        where r.role_name = session_user
    );
    present record;
    id uuid;
begin
    if bound is null and not (
        pg_has_role(session_user, 'gatepost_owner', 'member')
        or has_table_privilege(session_user, 'public.gateways', 'insert')
    ) then
        raise exception using
            errcode = 'GP001',
            message = format('role %s is bound to no gateway', session_user),
            hint = format('run `gatepost grant %s %s`', name, session_user);
    elsif bound <> name then
        raise exception using
            errcode = 'GP006',
            message = format('role %s is bound to gateway %s, not to %s', session_user, bound, name),
            hint = format('run `gatepost grant %s %s`', name, session_user);
    end if;

    select g.id, g.public_key, g.deleted_at into present
    from public.gateways g
    where g.name = name
    for no key update;
    if not found then
        if endpoint is null or listen_port is null or vpn_cidr is null then
            raise exception using
                errcode = 'GP002',
                message = format('there is no gateway named %s', name),
                hint = 'give endpoint, listen port and vpn_cidr to make it';
        end if;
        id := gen_random_uuid();
        insert into public.gateways (
            id, name, endpoint, public_key, listen_port, vpn_cidr, dns_servers
        )
        values (
            id, name, endpoint, public_key, listen_port, vpn_cidr, coalesce(dns_servers, '{}')
        );
    elsif present.deleted_at is not null then
        raise exception using
            errcode = 'GP002',
            message = format('gateway %s was deleted at %s', name, present.deleted_at),
            hint = 'set its deleted_at to null to use it again, or enroll under another name';
    else
        id := present.id;
        update public.gateways g
        set public_key = public_key,
            endpoint = coalesce(endpoint, g.endpoint),
            listen_port = coalesce(listen_port, g.listen_port),
            vpn_cidr = coalesce(vpn_cidr, g.vpn_cidr),
            dns_servers = coalesce(dns_servers, g.dns_servers),
            updated_at = now()
        where g.id = id;
    end if;

    insert into gatepost.gateway_role as r (role_name, gateway_name, gateway_id)
    values (session_user, name, id)
    on conflict (role_name) do update set gateway_id = excluded.gateway_id;
    insert into public.audit_logs (
        id, event_type, entity_type, entity_id, status, message, metadata
    )
    values (
        gen_random_uuid(), 'gateway.enrolled', 'gateway', id, 'success',
        format('role %s enrolled gateway %s', session_user, name),
        jsonb_build_object('public_key', public_key, 'former_public_key', present.public_key)
    );
    return id;
end $$;

-- Removes marks older than `keep`, at most 50,000 at a time, and raises the floor so that a cursor
-- that needed them is told. Never beyond what any running transaction may still have to see. Returns
-- how many.
create function gatepost.prune(keep interval) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    horizon xid8 := pg_snapshot_xmin(pg_current_snapshot());
    pruned bigint;
    last xid8;
begin
    if keep < interval '1 hour' then
        raise exception using
            errcode = '22023',
            message = format('marks must be kept for at least an hour, not %s', keep);
    end if;
    -- One agent is enough.
    perform from gatepost.state for update skip locked;
    if not found then
        return 0;
    end if;
    -- From the oldest on, until one is to be kept.
    select least(horizon, min(k.xid)) into horizon
    from (select c.xid, c.at from gatepost.change c order by c.xid limit 50001) k
    where k.at >= now() - keep;
    with gone as (
        delete from gatepost.change c
        where c.ctid = any (array(
            select o.ctid
            from gatepost.change o
            where o.at < now() - keep and o.xid < horizon
            order by o.xid
            limit 50000
        ))
        returning c.xid
    )
    select count(*), (select g.xid from gone g order by g.xid desc limit 1) into pruned, last
    from gone;
    if pruned > 0 then
        -- The floor is above the last mark removed: the next transaction id after it. One that is
        -- ahead of the server came with a backup.
        update gatepost.state s
        set floor = ((last::text::numeric + 1)::text)::xid8, pruned_at = now()
        where s.floor <= last or s.floor > pg_snapshot_xmax(pg_current_snapshot());
    end if;
    return pruned;
end $$;

reset role;
