-- Reports of gateways wait in tables of Gatepost until they are merged into the control plane's own.
--
-- To report takes no lock on a row of the control plane, so a session that never ends its transaction
-- holds up neither a revocation nor another gateway. gatepost.merge() brings waiting reports into
-- gateways, devices and audit_logs, in a statement of its own, and leaves out rows that another
-- transaction holds. The control plane's triggers on these tables may refuse that: then the reports
-- wait, and gatepost.merge() says which trigger it was and which right mends it.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

-- No table below has a foreign key: a reference would lock the row of the control plane.

create table gatepost.host (
    gateway_id uuid not null,
    machine text not null,
    boot text not null,
    name text not null,
    since timestamptz not null default now(),
    seen_at timestamptz not null default now(),
    proven_at timestamptz,
    primary key (gateway_id, machine, boot)
) with (fillfactor = 50);
comment on table gatepost.host is
    'Hosts whose agents report for a gateway, each with its own last proof. An empty machine is an agent that does not name its host.';

create table gatepost.seen (
    gateway_id uuid not null,
    device_id uuid not null,
    first_at timestamptz not null,
    seen_at timestamptz not null,
    connected_at timestamptz,
    since timestamptz not null default now(),
    primary key (gateway_id, device_id)
) with (fillfactor = 50);
comment on table gatepost.seen is 'Handshakes that wait to be merged into devices.';

create table gatepost.event (
    id uuid primary key default gen_random_uuid(),
    gateway_id uuid not null,
    at timestamptz not null default clock_timestamp(),
    device_id uuid,
    event_type text not null,
    entity_type text not null,
    entity_id uuid,
    status text not null,
    ip_address inet,
    message text not null,
    metadata jsonb not null
);
create index event_by_gateway on gatepost.event (gateway_id, at, id);
comment on table gatepost.event is 'Audit entries that wait to be merged into audit_logs.';

create table gatepost.refused (
    gateway_id uuid not null,
    relation text not null,
    since timestamptz not null default now(),
    why text not null,
    primary key (gateway_id, relation)
);
comment on table gatepost.refused is
    'Tables of the control plane that refuse a gateway''s reports, since when, and why.';

-- To report.

create or replace function gatepost.report(
    device_ids uuid[], seen_at timestamptz[], connected_at timestamptz[]
) returns setof uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp
set jit = off as $$
declare
    me constant uuid := gatepost.me();
begin
    if cardinality(device_ids) > 10000 then
        raise exception using
            errcode = 'GP009',
            message = format('a report is of at most 10000 handshakes, not of %s',
                cardinality(device_ids));
    end if;
    insert into gatepost.seen as s (gateway_id, device_id, first_at, seen_at, connected_at)
    select me, r.id,
        min(case when r.seen > now() then now() else r.seen end),
        max(case when r.seen > now() then now() else r.seen end),
        max(case when r.connected > now() then now() else r.connected end)
    from unnest(device_ids, seen_at, connected_at) r (id, seen, connected)
    where r.id = any (array(
            select p.device_id
            from public.wireguard_peers p
            where p.device_id = any (device_ids) and p.gateway_id = me and p.deleted_at is null
        ))
        and r.seen >= 'epoch' and (r.connected is null or r.connected >= 'epoch')
    group by r.id
    order by r.id
    on conflict (gateway_id, device_id) do update set
        first_at = least(s.first_at, excluded.first_at),
        seen_at = greatest(s.seen_at, excluded.seen_at),
        connected_at = greatest(s.connected_at, excluded.connected_at);
end $$;
comment on function gatepost.report(uuid[], timestamptz[], timestamptz[]) is
    'Takes handshakes and session starts of devices with a live peer here, none ahead of the database''s clock. They wait for gatepost.merge(). Returns no row; earlier versions returned devices to report again.';

create function gatepost.lease() returns interval
language sql immutable as $$ select interval '2 minutes' $$;
comment on function gatepost.lease() is
    'A host that has not been heard of for this long does not report for its gateway any more.';

create function gatepost.hear_of(
    gateway uuid, of_machine text, of_boot text, of_name text, proven timestamptz
) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    began timestamptz;
begin
    insert into gatepost.host as h (gateway_id, machine, boot, name, proven_at)
    -- Not least(): that takes now() for a time that is null.
    values (gateway, left(of_machine, 64), left(of_boot, 64), left(of_name, 64),
        case when proven > now() then now() when proven >= 'epoch' then proven end)
    on conflict (gateway_id, machine, boot) do update set
        name = excluded.name,
        seen_at = excluded.seen_at,
        -- A time ahead of the clock, from before the clock was set back, proves nothing.
        proven_at = case when h.proven_at > now() then excluded.proven_at
            else greatest(h.proven_at, excluded.proven_at) end
    returning h.since into began;
    -- The host was started again, which emptied its kernel, or its agent began to name the host. A
    -- host that has reported since is another one.
    delete from gatepost.host h
    where (h.gateway_id, h.machine, h.boot) in (
        select o.gateway_id, o.machine, o.boot
        from gatepost.host o
        where o.gateway_id = gateway and o.machine in ('', left(of_machine, 64))
            and (o.machine, o.boot) <> (left(of_machine, 64), left(of_boot, 64))
            and o.seen_at < began
            and (o.machine = '' or o.seen_at < now() - gatepost.lease())
        for update skip locked
    );
    if (select count(*) from gatepost.host h where h.gateway_id = gateway) > 16 then
        raise exception using
            errcode = 'GP009',
            message = 'more than 16 hosts report for this gateway',
            hint = 'run `gatepost host forget NAME` for each that is gone';
    end if;
end $$;
comment on function gatepost.hear_of(uuid, text, text, text, timestamptz) is
    'Notes that a host reports for a gateway, and what it has proven; null: nothing new.';

create or replace function gatepost.synced(
    proven_at timestamptz, since_epoch text default null
) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    -- What a crash takes back was true before, and is reported again.
    perform set_config('synchronous_commit', 'off', true);
    if since_epoch <> gatepost.epoch() then
        return false;
    end if;
    perform gatepost.hear_of(gatepost.me(), '', '', '', synced.proven_at);
    return true;
end $$;
comment on function gatepost.synced(timestamptz, text) is
    'For agents of schema 10: gatepost.proven() of a host without a name.';

create or replace function gatepost.audit(entries jsonb) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off as $$
declare
    me constant uuid := gatepost.me();
    odd text;
begin
    if jsonb_array_length(entries) > 1000 or pg_column_size(entries) > 33554432 then
        raise exception using
            errcode = 'GP009',
            message = 'a call takes at most 1000 audit entries of 32 MiB in all';
    elsif exists (select from gatepost.event e where e.gateway_id = me offset 200000)
        or exists (select from gatepost.said s where s.gateway_id = me offset 200000)
    then
        raise exception using
            errcode = 'GP009',
            message = 'more than 200000 audit entries of this gateway wait to be merged';
    end if;
    select concat_ws(' about ', e.event_type, e.entity_type) into odd
    from jsonb_to_recordset(entries) e (event_type text, entity_type text)
    where (e.event_type ~ '^(gateway|peer|policy)\.[a-z_]{1,40}$') is not true
        -- gatepost.enroll() writes this one.
        or e.event_type = 'gateway.enrolled'
        or (e.entity_type in ('gateway', 'peer', 'device', 'policy')) is not true
    limit 1;
    if found then
        raise exception using
            errcode = 'GP005',
            message = format('%L is no event of a gateway', left(odd, 100));
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
    with said as materialized (
        select e.*
        from rows from (jsonb_to_recordset(entries) as (
            event_type text, entity_type text, entity_id uuid, device_id uuid, status text,
            ip_address inet, message text, metadata jsonb
        )) with ordinality e (
            event_type, entity_type, entity_id, device_id, status, ip_address, message, metadata,
            number
        )
    ),
    here as materialized (
        select distinct p.device_id
        from public.wireguard_peers p
        where p.gateway_id = me and p.device_id = any (array(
            select s.device_id from said s
            union
            select s.entity_id from said s where s.entity_type = 'device'
        ))
    ),
    -- Peers and devices of other gateways, except those that were here within the last day.
    elsewhere as materialized (
        select p.id, p.device_id
        from public.wireguard_peers p
        where p.gateway_id <> me and p.id = any (array(
            select s.entity_id from said s where s.entity_type = 'peer'
        ))
        union all
        select d.id, d.id
        from public.devices d
        where d.id = any (array(select s.entity_id from said s where s.entity_type = 'device'))
            and d.id not in (select h.device_id from here h)
    ),
    foreign_ids as materialized (
        select e.id
        from elsewhere e
        where not exists (
            select
            from gatepost.change c
            where c.gateway_id = me and c.kind = 'peer' and e.device_id = any (c.ids)
        )
    ),
    news as (
        insert into gatepost.said (gateway_id, entity_id, event_type, digest)
        select distinct me, s.entity_id, s.event_type, md5(s.message)
        from said s
        where s.event_type in ('peer.quarantined', 'policy.ignored')
            and s.entity_id is not null and s.message is not null
        on conflict do nothing
        returning entity_id, event_type, digest
    )
    insert into gatepost.event (
        gateway_id, device_id, event_type, entity_type, entity_id, status, ip_address, message,
        metadata
    )
    select
        me,
        (select h.device_id from here h where h.device_id = s.device_id),
        s.event_type,
        s.entity_type,
        case
            when s.entity_type = 'gateway' then me
            when s.entity_id not in (select f.id from foreign_ids f) then s.entity_id
        end,
        left(coalesce(s.status, 'success'), 40),
        s.ip_address,
        left(coalesce(s.message, ''), 2000),
        case
            when jsonb_typeof(s.metadata) <> 'object' then '{}'
            when length(s.metadata::text) > 16384 then '{"metadata": "over 16384 bytes, left out"}'
            else coalesce(s.metadata, '{}')
        end || jsonb_build_object('gateway_id', me)
    from said s
    where s.event_type not in ('peer.quarantined', 'policy.ignored')
        or (s.entity_id, s.event_type, md5(s.message)) in (
            select n.entity_id, n.event_type, n.digest from news n
        )
    order by s.number;
end $$;
comment on function gatepost.audit(jsonb) is
    'Takes entries for audit_logs, which wait for gatepost.merge(). Each is stamped with the gateway that wrote it. What is wrong with a peer or a policy is taken once until it is something else.';

-- To merge.

create function gatepost.path_of_database() returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
    select concat_ws(', ', string_agg(trim(p), ', ' order by number), 'pg_temp')
    from unnest(string_to_array(coalesce((
        select substr(s, length('search_path=') + 1)
        from pg_db_role_setting r
        cross join unnest(r.setconfig) s
        where r.setrole = 0 and s like 'search\_path=%'
            and r.setdatabase in (
                0, (select d.oid from pg_database d where d.datname = current_database())
            )
        order by r.setdatabase = 0
        limit 1
    ), 'public'), ',')) with ordinality p (p, number)
    -- pg_catalog comes first unless it is listed.
    where trim(both ' "' from p) not in ('', 'pg_catalog', 'pg_temp')
$$;
comment on function gatepost.path_of_database() is
    'The search_path of this database, else public; pg_temp is last. The control plane''s triggers expect it.';

create function gatepost.refusal(
    relation text, code text, message text, context text, path text
) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    whose text;
    missing text := (regexp_match(message, '(\S+)$'))[1];
    verb text := lower((regexp_match(context, '"\s*(insert|update|delete|select)\M', 'i'))[1]);
    remedy text;
begin
    -- The innermost function comes first, so that the last trigger's function is the one that the
    -- statement called.
    select format('trigger %I on %s', t.tgname, relation) into whose
    from regexp_matches(context, '([^\s"]+\(\))', 'g') with ordinality m (found, number)
    join pg_trigger t on t.tgrelid = to_regclass('public.' || relation) and not t.tgisinternal
    join pg_proc p on p.oid = t.tgfoid
        and m.found[1] in (format('%I()', p.proname), format('%s.%I()', p.pronamespace::regnamespace, p.proname))
    order by m.number desc
    limit 1;
    if whose is null then
        select format('%s (triggers: %s)', relation,
            string_agg(quote_ident(t.tgname), ', ' order by t.tgname))
        into whose
        from pg_trigger t
        where t.tgrelid = to_regclass('public.' || relation)
            and not t.tgisinternal and t.tgenabled <> 'D' and t.tgname not like 'gatepost\_%'
        having count(*) > 0;
    end if;
    if code = '42501' then
        select format('grant %s on %s%I.%I to gatepost_owner',
            case when c.relkind = 'S' then 'usage' else coalesce(verb, 'insert') end,
            case when c.relkind = 'S' then 'sequence ' end, n.nspname, c.relname)
        into remedy
        from pg_class c
        join pg_namespace n on n.oid = c.relnamespace
        where c.relname = missing and n.nspname not in ('pg_catalog', 'information_schema', 'gatepost')
        order by n.nspname = 'public' desc
        limit 1;
        if remedy is null and exists (select from pg_namespace n where n.nspname = missing) then
            remedy := format('grant usage on schema %I to gatepost_owner', missing);
        elsif remedy is null then
            select format('grant execute on function %s to gatepost_owner', p.oid::regprocedure)
            into remedy
            from pg_proc p
            where p.proname = missing and p.pronamespace <> 'pg_catalog'::regnamespace
            limit 1;
        end if;
        remedy := ': run `' || remedy || '`';
    elsif code in ('42P01', '42883', '42704') then
        remedy := format(': it was looked for in %s; give the trigger''s function a search_path of '
            'its own', path);
    end if;
    return concat(coalesce(whose, relation), ': ', message, remedy);
end $$;
comment on function gatepost.refusal(text, text, text, text, text) is
    'Why a table refused a report: the trigger, its error, and the GRANT that mends it.';

create function gatepost.merge_rows(
    relation text, statement text, gateway uuid, ids uuid[],
    out taken uuid[], out refused uuid[], out why text, out code text
)
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '2s' set jit = off as $$
declare
    size constant integer := coalesce(cardinality(ids), 0);
    middle constant integer := (size + 1) / 2;
    low integer[] := array[1];
    high integer[] := array[size];
    first integer;
    last integer;
    half integer;
    page uuid[];
    error text;
    message text;
    context text;
    path constant text := gatepost.path_of_database();
begin
    taken := '{}';
    refused := '{}';
    while size > 0 and cardinality(low) > 0 loop
        first := low[cardinality(low)];
        last := high[cardinality(high)];
        low := low[1:cardinality(low) - 1];
        high := high[1:cardinality(high) - 1];
        continue when first > last;
        begin
            page := ids[first:last];
            -- For nothing but this statement: schemas of that path may hold anybody's operators.
            perform set_config('search_path', path, true);
            execute statement using page, gateway;
            set constraints all immediate;
            perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
            taken := taken || ids[first:last];
        exception when others then
            get stacked diagnostics error = returned_sqlstate, message = message_text,
                context = pg_exception_context;
            -- A lock, a deadlock: not now.
            exit when left(error, 2) in ('40', '55', '53', '57');
            if first = last then
                refused := refused || ids[first];
                code := error;
                why := gatepost.refusal(relation, error, message, context, path);
                -- The first, the middle and the last one: then all are refused.
                exit when cardinality(taken) = 0 and cardinality(refused) = 3
                    or cardinality(refused) = 20;
            elsif last - first + 1 = size and size > 3 then
                low := low || array[2, middle + 1, size, middle, 1];
                high := high || array[middle - 1, size - 1, size, middle, 1];
            else
                half := (first + last) / 2;
                low := low || array[half + 1, first];
                high := high || array[last, half];
            end if;
        end;
    end loop;
end $$;
comment on function gatepost.merge_rows(text, text, uuid, uuid[]) is
    'Executes a statement for these ids, with the search_path of the database for the control plane''s triggers. If it fails, the ids are halved until the refused ones are found, unless all are refused.';

create function gatepost.merge_part(
    gateway uuid, of_relation text, statement text, forget text, ids uuid[],
    out why text, out lost integer, out settled integer
)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    merged record;
begin
    lost := 0;
    settled := 0;
    select * into merged from gatepost.merge_rows(of_relation, statement, gateway, ids);
    why := merged.why;
    if cardinality(merged.taken) > 0 and left(merged.code, 2) in ('22', '23', 'P0') then
        -- The values of these rows alone are refused, and will be.
        lost := cardinality(merged.refused);
        settled := cardinality(merged.taken || merged.refused);
        execute forget using merged.taken || merged.refused, gateway;
    elsif cardinality(merged.taken) > 0 then
        settled := cardinality(merged.taken);
        execute forget using merged.taken, gateway;
    end if;
    if why is not null and lost = 0 then
        insert into gatepost.refused as r (gateway_id, relation, why)
        values (gateway, of_relation, merged.why)
        on conflict (gateway_id, relation) do update set why = excluded.why;
    elsif cardinality(merged.taken) > 0 then
        delete from gatepost.refused r where r.gateway_id = gateway and r.relation = of_relation;
    end if;
end $$;
comment on function gatepost.merge_part(uuid, text, text, text, uuid[]) is
    'Merges waiting rows into one table. `lost`: so many rows are refused alone for what they say, and forgotten. If it refuses all, they wait, and gatepost.refused says so. `settled`: so many wait no longer.';

create function gatepost.merge_of(gateway uuid, waited interval)
returns table (why text, lost integer)
language plpgsql set search_path = pg_catalog, pg_temp set row_security = off set jit = off as $$
declare
    ids uuid[];
    page uuid[];
    part record;
begin
    select * into part from gatepost.merge_part(gateway, 'gateways',
        'update public.gateways set last_sync_at = (
            select min(h.proven_at) from gatepost.host h where h.gateway_id = $2
        ) where id = any ($1)',
        'select',
        array(
            select g.id
            from public.gateways g
            cross join (
                select min(h.proven_at) as at
                from gatepost.host h
                where h.gateway_id = gateway
                having bool_and(h.proven_at is not null)
            ) proof
            where g.id = gateway
                and (
                    g.last_sync_at is null or g.last_sync_at < proof.at - waited
                    or g.last_sync_at > now()
                )
            for no key update of g skip locked
        ));

    page := array['00000000-0000-0000-0000-000000000000'::uuid];
    loop
        page := array(
            select s.device_id
            from gatepost.seen s
            where s.gateway_id = gateway and s.device_id > page[cardinality(page)]
                and s.since <= now() - waited
            order by s.device_id
            limit 1000
            for update skip locked
        );
        exit when cardinality(page) = 0;
        ids := array(
            select d.id
            from public.devices d
            where d.id = any (page)
            order by d.id
            for no key update skip locked
        );
        select * into part from gatepost.merge_part(gateway, 'devices', $statement$
            update public.devices d
            set last_seen_at = r.seen, last_connected_at = r.connected
            from (
                select s.device_id, greatest(l.last_seen_at, s.seen_at) as seen,
                    -- An agent that has just started does not know when the session began: it is a
                    -- new one if the last report is older than a session lasts without a handshake.
                    greatest(l.last_connected_at, case
                        when s.connected_at is not null then s.connected_at
                        when l.last_connected_at is null or l.last_seen_at is null
                            or s.first_at > l.last_seen_at + interval '180 seconds' then s.first_at
                    end) as connected
                from gatepost.seen s
                join (
                    -- What lies ahead of the clock cannot be true.
                    select o.id,
                        case when o.last_seen_at <= now() then o.last_seen_at end as last_seen_at,
                        case when o.last_connected_at <= now() then o.last_connected_at end
                            as last_connected_at
                    from public.devices o
                    where o.id = any ($1)
                ) l on l.id = s.device_id
                where s.gateway_id = $2 and s.device_id = any ($1)
            ) r
            where d.id = any ($1) and d.id = r.device_id
                and (r.seen, r.connected) is distinct from (d.last_seen_at, d.last_connected_at)
            $statement$,
            'delete from gatepost.seen where device_id = any ($1) and gateway_id = $2', ids);
        why := part.why;
        lost := part.lost;
        return next;
        -- Devices that are gone.
        delete from gatepost.seen s
        where s.gateway_id = gateway and s.device_id = any (page)
            and not exists (select from public.devices d where d.id = s.device_id);
        exit when exists (
            select from gatepost.refused r where r.gateway_id = gateway and r.relation = 'devices'
        );
    end loop;

    loop
        ids := array(
            select e.id
            from gatepost.event e
            where e.gateway_id = gateway and e.at <= clock_timestamp() - waited
            order by e.at, e.id
            limit 1000
            for update skip locked
        );
        select * into part from gatepost.merge_part(gateway, 'audit_logs', $statement$
            insert into public.audit_logs (
                id, actor_device_id, event_type, entity_type, entity_id, status, ip_address, message,
                metadata, created_at
            )
            select e.id, (select d.id from public.devices d where d.id = e.device_id), e.event_type,
                e.entity_type, e.entity_id, e.status, e.ip_address, e.message, e.metadata, e.at
            from gatepost.event e
            where e.id = any ($1)
            order by e.at, e.id
            $statement$,
            'delete from gatepost.event where id = any ($1) and gateway_id = $2', ids);
        why := part.why;
        lost := part.lost;
        return next;
        exit when part.settled < 1000;
    end loop;

    delete from gatepost.refused r
    where r.gateway_id = gateway and case r.relation
        when 'devices' then
            not exists (select from gatepost.seen s where s.gateway_id = gateway)
        when 'audit_logs' then
            not exists (select from gatepost.event e where e.gateway_id = gateway)
    end;
end $$;
comment on function gatepost.merge_of(uuid, interval) is
    'Merges the reports of a gateway that have waited for so long, and skips rows that another transaction holds.';

create function gatepost.merge()
returns table (why text, since timestamptz, lost integer)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    me constant uuid := gatepost.me();
begin
    -- What a crash takes back waits again.
    perform set_config('synchronous_commit', 'off', true);
    return query
    select m.why, null::timestamptz, m.lost
    from gatepost.merge_of(me, '0') m
    where m.lost > 0;
    return query
    select r.why, r.since, 0 from gatepost.refused r where r.gateway_id = me order by r.relation;
end $$;
comment on function gatepost.merge() is
    'Merges the reports of this gateway into gateways, devices and audit_logs. To be called in a statement of its own, because it locks the rows that it writes. Returns why reports wait, and since when, or how many are lost because of what they say.';

create function gatepost.try_reports() returns text[]
language plpgsql security definer set search_path = pg_catalog, pg_temp set row_security = off as $$
declare
    -- Null for the owner of the database, who is bound to no gateway: then any.
    me constant uuid := (
        select r.gateway_id from gatepost.gateway_role r where r.role_name = session_user
    );
    part record;
    ids uuid[];
    merged record;
    refusals text[] := '{}';
begin
    if me is null and not pg_has_role(session_user, 'gatepost_owner', 'member') then
        perform gatepost.me();
    end if;
    for part in
        select 'gateways' as relation,
            'select g.id from public.gateways g where $1 is null or g.id = $1
                limit 1 for no key update skip locked' as ids,
            'update public.gateways set last_sync_at = now() where id = any ($1)' as statement
        union all
        select 'devices',
            'select d.id from public.devices d
                where $1 is null or exists (
                    select
                    from public.wireguard_peers p
                    where p.device_id = d.id and p.gateway_id = $1 and p.deleted_at is null
                )
                limit 1 for no key update skip locked',
            'update public.devices set last_seen_at = now(), last_connected_at = now()
                where id = any ($1)'
        union all
        select 'audit_logs', 'select gen_random_uuid()',
            'insert into public.audit_logs (
                id, event_type, entity_type, entity_id, status, message, metadata, created_at
            ) values (
                $1[1], ''gateway.started'', ''gateway'', $2, ''success'', ''a report is tried'', ''{}'',
                now()
            )'
    loop
        begin
            execute format('select array(%s)', part.ids) into ids using me;
            select * into merged
            from gatepost.merge_rows(part.relation, part.statement, me, ids);
            raise sqlstate 'ZG000'; -- takes everything back, locks too
        exception when sqlstate 'ZG000' then
            refusals := array_remove(refusals || merged.why, null);
        end;
    end loop;
    return refusals;
end $$;
comment on function gatepost.try_reports() is
    'Tries a report to each table and takes it back. Returns why a table refuses it. For agents, who try their own rows, and for the owner of the database.';

-- Agents of schema 10 do not call gatepost.merge(): the statement by which they register does it for
-- them, once a minute.
create or replace function gatepost.attach(listens boolean) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    me constant uuid := gatepost.me();
begin
    insert into gatepost.attached as a (gateway_id, listens, at)
    values (me, attach.listens, now())
    on conflict (gateway_id) do update set listens = excluded.listens, at = excluded.at;
    begin
        perform gatepost.merge_of(me, interval '30 seconds');
    exception when others then
        null; -- no reason to be away
    end;
    return (
        select count(*) from gatepost.attached a where a.at > now() - interval '5 minutes'
    );
end $$;

create function gatepost.await_sync(
    since timestamptz default clock_timestamp(),
    timeout interval default interval '30 seconds',
    out gateway text,
    out last_sync_at timestamptz,
    out is_proven boolean
) returns setof record
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set row_security = off as $$
declare
    deadline constant timestamptz := clock_timestamp() + timeout;
begin
    if pg_current_xact_id_if_assigned() is not null
        or current_setting('transaction_isolation') <> 'read committed'
    then
        raise exception using
            errcode = 'GP007',
            message = 'await_sync() cannot wait in this transaction: gateways see what it wrote after '
                'its commit, and it sees what they write only if it is READ COMMITTED',
            hint = 'commit, then call gatepost.await_sync() in a statement of its own';
    end if;
    -- A time ahead of the clock, from before the clock was set back, proves nothing.
    while clock_timestamp() < deadline and exists (
        select
        from gatepost.proofs() p
        where (p.proven_at between since and clock_timestamp()) is not true
    ) loop
        perform pg_sleep(0.1);
    end loop;
    return query
    select p.gateway, p.proven_at, (p.proven_at between since and clock_timestamp()) is true
    from gatepost.proofs() p
    order by p.gateway;
end $$;

comment on function gatepost.await_sync(timestamptz, interval) is
    'For the owner, after a commit: waits until each active gateway, and each whose agent was there in the last five minutes, has proven to follow the database as of `since`, at most for `timeout`. A gateway that has not is returned with is_proven = false.';

-- Also a gateway that was switched off must follow, as long as its agent is there.
create function gatepost.proofs() returns table (gateway text, proven_at timestamptz)
language sql stable set search_path = pg_catalog, pg_temp as $$
    select g.name::text, case when h.hosts > 0 then h.proven_at else g.last_sync_at end
    from public.gateways g
    cross join lateral (
        select count(*) as hosts,
            case when bool_and(h.proven_at is not null) then min(h.proven_at) end as proven_at
        from gatepost.host h
        where h.gateway_id = g.id
    ) h
    where g.is_active and g.deleted_at is null
        or exists (
            select
            from gatepost.attached a
            where a.gateway_id = g.id and a.at > now() - interval '5 minutes'
        )
$$;
comment on function gatepost.proofs() is
    'The time as of which each gateway is proven on all its hosts, merged or not: of the active gateways, and of those whose agents were there in the last five minutes.';

-- What a gateway's login cannot do.

create function gatepost.at_most(limit_is integer, asked integer) returns void
language plpgsql immutable as $$
begin
    if asked > limit_is then
        raise exception using
            errcode = 'GP009',
            message = format('a call takes at most %s items, not %s', limit_is, asked);
    end if;
end $$;
comment on function gatepost.at_most(integer, integer) is 'Refuses a call with more items than its limit.';

-- A mark is unseen by a snapshot if its transaction came later, or was in progress then. Both are
-- conditions of an index, so that the cost does not grow with the age of the oldest transaction.
create or replace function gatepost.marks_since(me uuid, seen pg_snapshot) returns gatepost.change[]
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
    behind constant xid8 := pg_snapshot_xmax(seen);
    running constant xid8[] := array(select pg_snapshot_xip(seen));
    ahead constant xid8 := pg_snapshot_xmax(pg_current_snapshot());
    marks gatepost.change[];
    last gatepost.addressed;
    unaddressed xid8 := behind;
    unaddressed_running xid8[] := running;
begin
    marks := array(
        select c
        from gatepost.change c
        where c.gateway_id in (me, gatepost.everyone()) and c.xid >= behind and c.xid < ahead
        union all
        select c
        from gatepost.change c
        where c.gateway_id in (me, gatepost.everyone()) and c.xid = any (running)
        limit 5001
    );
    select * into last from gatepost.addressed a where a.history = gatepost.history();
    if pg_snapshot_xmax(last.since) <= pg_snapshot_xmin(seen) then
        -- Those that `last.seen` sees are addressed.
        unaddressed := greatest(behind, pg_snapshot_xmax(last.seen));
        unaddressed_running := running || array(select pg_snapshot_xip(last.seen));
    end if;
    return marks || array(
        select c
        from (
            select a
            from gatepost.change a
            where a.gateway_id = gatepost.nobody() and a.xid >= unaddressed and a.xid < ahead
            union all
            select b
            from gatepost.change b
            where b.gateway_id = gatepost.nobody() and b.xid = any (unaddressed_running)
                and b.xid < unaddressed
        ) s (c)
        where not pg_visible_in_snapshot((c).xid, seen)
            and (
                last.seen is null
                or pg_visible_in_snapshot((c).xid, last.since)
                or not pg_visible_in_snapshot((c).xid, last.seen)
            )
        limit 5001
    );
end $$;

create or replace function gatepost.waits(seen pg_snapshot) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
    running constant xid8[] := array(select pg_snapshot_xip(seen));
begin
    return exists (
        select
        from gatepost.change c
        where c.gateway_id = gatepost.nobody() and c.xid >= pg_snapshot_xmax(seen)
            and c.xid < pg_snapshot_xmax(pg_current_snapshot())
    ) or exists (
        select
        from gatepost.change c
        where c.gateway_id = gatepost.nobody() and c.xid = any (running)
    );
end $$;
comment on function gatepost.waits(pg_snapshot) is
    'Whether a mark that is addressed to no gateway has come since.';

create function gatepost.has_news(gateways uuid[], seen pg_snapshot) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
    running constant xid8[] := array(select pg_snapshot_xip(seen));
    own constant xid8 := pg_current_xact_id_if_assigned(); -- addressed just now
begin
    return exists (
        select
        from gatepost.change c
        where c.gateway_id = any (gateways) and c.xid >= pg_snapshot_xmax(seen)
            and (c.xid < pg_snapshot_xmax(pg_current_snapshot()) or c.xid = own)
    ) or exists (
        select
        from gatepost.change c
        where c.gateway_id = any (gateways) and c.xid = any (running)
    );
end $$;
comment on function gatepost.has_news(uuid[], pg_snapshot) is
    'Whether a mark for one of these gateways has come since.';

-- These walked from the oldest transaction of a snapshot, or lacked a limit. Only these conditions change.
do $$
declare
    changed record;
    present text;
begin
    for changed in select * from (values
        ('gatepost.address()', '        select c
        from gatepost.change c
        where c.gateway_id = gatepost.nobody() and c.xid >= pg_snapshot_xmin(last.seen)
            and c.xid < pg_snapshot_xmax(pg_current_snapshot())
            and not pg_visible_in_snapshot(c.xid, last.seen)
        limit 10001', '        select c
        from gatepost.change c
        where c.gateway_id = gatepost.nobody() and c.xid >= pg_snapshot_xmax(last.seen)
            and c.xid < pg_snapshot_xmax(pg_current_snapshot())
        union all
        select c
        from gatepost.change c
        where c.gateway_id = gatepost.nobody()
            and c.xid = any (array(select pg_snapshot_xip(last.seen)))
        limit 10001'),
        ('gatepost.tell()', '        select distinct c.gateway_id
        from gatepost.change c
        where c.xid >= pg_snapshot_xmin(last.told) and c.xid <> last.told_by
            and (c.xid < pg_snapshot_xmax(pg_current_snapshot()) or c.xid = pg_current_xact_id())
            and not pg_visible_in_snapshot(c.xid, last.told)
            and c.gateway_id <> gatepost.nobody()', '        select c.gateway_id
        from gatepost.change c
        where c.xid >= pg_snapshot_xmax(last.told) and c.xid <> last.told_by
            and (c.xid < pg_snapshot_xmax(pg_current_snapshot()) or c.xid = pg_current_xact_id())
            and c.gateway_id <> gatepost.nobody()
        union
        select c.gateway_id
        from gatepost.change c
        where c.xid = any (array(select pg_snapshot_xip(last.told))) and c.xid <> last.told_by
            and c.gateway_id <> gatepost.nobody()'),
        ('gatepost.take_turn()', '        and exists (
            select
            from gatepost.change c
            where c.xid >= pg_snapshot_xmin(last.told) and c.xid <> last.told_by
                and c.xid < pg_snapshot_xmax(pg_current_snapshot())
                and not pg_visible_in_snapshot(c.xid, last.told)
        )', '        and (exists (
            select
            from gatepost.change c
            where c.xid >= pg_snapshot_xmax(last.told) and c.xid <> last.told_by
                and c.xid < pg_snapshot_xmax(pg_current_snapshot())
        ) or exists (
            select
            from gatepost.change c
            where c.xid = any (array(select pg_snapshot_xip(last.told))) and c.xid <> last.told_by
        ))'),
        ('gatepost.prune(interval)', '    if keep < interval ''1 hour'' then',
            -- An interval alone says nothing: a month counts as 30 days, and is not as long each time.
            '    if (now() - keep <= now() - interval ''1 hour'') is not true then'),
        -- There is no min(xid8) before version 15: marks were never pruned there.
        ('gatepost.prune(interval)', 'min(k.xid)', '(array_agg(k.xid order by k.xid))[1]'),
        ('gatepost.peers_by_device(uuid[])', '
begin
', '
begin
    perform gatepost.at_most(20000, cardinality(device_ids));
'),
        ('gatepost.memberships_by_user(uuid[])', '
begin
', '
begin
    perform gatepost.at_most(20000, cardinality(user_ids));
'),
        ('gatepost.policies_by_id(uuid[])', '
begin
', '
begin
    perform gatepost.at_most(20000, cardinality(policy_ids));
'),
        ('gatepost.lost_marks(text[], text[], uuid[], uuid[], uuid[], timestamptz[])', '
begin
', '
begin
    perform gatepost.at_most(100000, cardinality(xids));
'),
        -- A policy whose targets are all dangling is shown, so that a gateway can warn. One with a target
        -- elsewhere is none of this gateway''s.
        ('gatepost.policies_of(uuid[])', '        select j.policy_id, array_agg(j.target_type) as types, array_agg(j.target_id) as ids,
            array_agg(not j.here and j.dangling) as dangling
        from judged j
        where j.here or not j.known or j.dangling
        group by j.policy_id', '        select j.policy_id, array_agg(j.target_type) as types, array_agg(j.target_id) as ids,
            array_agg(not j.here and j.dangling) as dangling, bool_or(j.here) as here
        from (
            select o.*, bool_or(o.here) over every
                or bool_and(o.dangling or not o.known) over every as is_shown
            from judged o
            window every as (partition by o.policy_id)
        ) j
        where j.is_shown and (j.here or not j.known or j.dangling)
        group by j.policy_id'),
        ('gatepost.policies_of(uuid[])', '        array(select x.destination::cidr from public.policy_destinations x where x.policy_id = p.id),',
            '        case when c.here then array(
            select x.destination::cidr from public.policy_destinations x where x.policy_id = p.id
        ) else ''{}'' end,'),
        ('gatepost.poll(text, text)', '                and exists (
                    select
                    from gatepost.change c
                    where c.gateway_id = gatepost.nobody()
                        and c.xid >= pg_snapshot_xmin(behind)
                        and c.xid < pg_snapshot_xmax(a.since)
                        and not pg_visible_in_snapshot(c.xid, behind)
                )', '                and (exists (
                    select
                    from gatepost.change c
                    where c.gateway_id = gatepost.nobody()
                        and c.xid >= pg_snapshot_xmax(behind)
                        and c.xid < pg_snapshot_xmax(a.since)
                ) or exists (
                    select
                    from gatepost.change c
                    where c.gateway_id = gatepost.nobody()
                        and c.xid = any (array(select pg_snapshot_xip(behind)))
                        and c.xid < pg_snapshot_xmax(a.since)
                ))'),
        ('gatepost.poll(text, text)', '            or exists (
                select
                from gatepost.change c
                where c.gateway_id in (me, gatepost.everyone())
                    and c.xid >= pg_snapshot_xmin(behind)
                    and (
                        c.xid < pg_snapshot_xmax(pg_current_snapshot())
                        or c.xid = pg_current_xact_id_if_assigned() -- addressed just now
                    )
                    and not pg_visible_in_snapshot(c.xid, behind)
            )', '            or gatepost.has_news(array[me, gatepost.everyone()], behind)')
    ) as c (function, before, after)
    loop
        present := pg_get_functiondef(to_regprocedure(changed.function));
        if position(changed.before in present) = 0 then
            raise exception '% is not as expected', changed.function;
        end if;
        execute replace(present, changed.before, changed.after);
    end loop;
end $$;

-- What a full read would show to no gateway shows in no list of changes, either.
create function gatepost.changes_among(
    since text,
    since_epoch text,
    known uuid[],
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
    marked uuid[];
begin
    select c.* into cursor, epoch, taken_at, everything, devices, users, marked
    from gatepost.all_changes(since, since_epoch) c;
    policies := '{}';
    if cardinality(users) > 0 then
        users := array(
            select i
            from unnest(users) i
            where exists (
                select
                from public.devices d
                join public.wireguard_peers p on p.device_id = d.id
                where d.user_id = i and p.gateway_id = me and p.deleted_at is null
            )
        );
    end if;
    if cardinality(marked) > 0 then
        policies := array(
            select p.id from gatepost.policies_of(marked) p
            union
            select i from unnest(marked) i where i = any (known)
        );
    end if;
end $$;
comment on function gatepost.changes_among(text, text, uuid[]) is
    'As gatepost.changes(), for an agent that names the policies that it knows: it is told of others only if they concern this gateway now.';

do $$
declare
    present constant text := pg_get_functiondef('gatepost.changes(text, text)'::regprocedure);
begin
    execute replace(present, '.changes(', '.all_changes(');
end $$;
comment on function gatepost.all_changes(text, text) is
    'What changed since a cursor, of this gateway and of all. Granted to no role.';

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
set jit = off as $$
declare
    marked uuid[];
begin
    select c.cursor, c.epoch, c.taken_at, c.everything, c.devices, c.users, c.policies
    into cursor, epoch, taken_at, everything, devices, users, policies
    from gatepost.changes_among(since, since_epoch, '{}') c;
    if everything is null then
        select a.policies into marked from gatepost.all_changes(since, since_epoch) a;
        if cardinality(marked) > cardinality(policies) then
            everything := 'a policy changed that does not concern this gateway';
            devices := '{}';
            users := '{}';
            policies := '{}';
        end if;
    end if;
end $$;
comment on function gatepost.changes(text, text) is
    'For agents of schema 10, which cannot be told that a policy left them without its id.';

create function gatepost.proven(
    proven_at timestamptz, since_epoch text, machine text, boot text, host_name text,
    out taken boolean, out leader text, out others text[]
)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
    me constant uuid := gatepost.me();
begin
    -- What a crash takes back was true before, and is reported again.
    perform set_config('synchronous_commit', 'off', true);
    taken := proven_at is not null and (since_epoch = gatepost.epoch()) is not false;
    perform gatepost.hear_of(me, machine, boot, host_name, case when taken then proven_at end);
    others := array(
        select h.name || to_char(h.seen_at at time zone 'UTC', '", last heard of at "YYYY-MM-DD"T"HH24:MI:SS"Z"')
        from gatepost.host h
        where h.gateway_id = me
            and (h.machine, h.boot) <> (left(machine, 64), left(boot, 64))
        order by h.since, h.machine, h.boot
    );
    select h.name into leader
    from (
        select a.name, a.machine, a.boot
        from gatepost.host a
        where a.gateway_id = me and a.seen_at > now() - gatepost.lease()
        order by a.since, a.machine, a.boot
        limit 1
    ) h
    where (h.machine, h.boot) <> (left(machine, 64), left(boot, 64));
end $$;
comment on function gatepost.proven(timestamptz, text, text, text, text) is
    'Takes what a host has proven, or with null only that it is there. `leader`: the other host that reports for this gateway now; `others`: all other hosts that it has.';

create function gatepost.hosts(
    out name text, out machine text, out boot text, out since timestamptz, out seen_at timestamptz,
    out proven_at timestamptz, out leads boolean
) returns setof record
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
    me constant uuid := gatepost.me();
begin
    return query
    select h.name, h.machine, h.boot, h.since, h.seen_at, h.proven_at,
        h.seen_at > now() - gatepost.lease() and row_number() over (
            order by h.seen_at > now() - gatepost.lease() desc, h.since, h.machine, h.boot
        ) = 1
    from gatepost.host h
    where h.gateway_id = me
    order by h.since, h.machine, h.boot;
end $$;
comment on function gatepost.hosts() is 'The hosts of this gateway.';

create function gatepost.forget_host(machine text, boot text) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
begin
    delete from gatepost.host h
    where h.gateway_id = gatepost.me() and h.machine = left(machine, 64) and h.boot = left(boot, 64);
    return found;
end $$;
comment on function gatepost.forget_host(text, text) is
    'Forgets a host that is gone, or that has nothing of this gateway in its kernel any more. last_sync_at waits for its proof no longer.';

do $$
declare
    present constant text := pg_get_functiondef('gatepost.misfits()'::regprocedure);
begin
    execute replace(present, '''gateway_role'', ''said''',
        '''gateway_role'', ''said'', ''host'', ''seen'', ''event'', ''refused''');
end $$;

revoke execute on all functions in schema gatepost from public;
grant execute on function
    gatepost.merge(),
    gatepost.try_reports(),
    gatepost.changes_among(text, text, uuid[]),
    gatepost.proven(timestamptz, text, text, text, text),
    gatepost.hosts(),
    gatepost.forget_host(text, text)
to gatepost_gateway;

reset role;
