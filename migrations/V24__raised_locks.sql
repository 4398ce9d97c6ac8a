-- The server ends a transaction at once if it raises its lock of a table for which another one waits that has locked
-- it before. A migration does that where it first locks `gateways` against writers and then alters it. So nothing of
-- Gatepost waits for a table that it has locked before: what it only looks up, it gives back.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

create function gatepost.has_gateway(id uuid) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    has boolean;
begin
    -- What can only read raises no lock.
    if current_setting('transaction_read_only')::boolean then
        return exists (select from public.gateways g where g.id = has_gateway.id);
    end if;
    begin
        has := exists (select from public.gateways g where g.id = has_gateway.id);
        raise sqlstate 'ZG000';
    exception when sqlstate 'ZG000' then
        return has;
    end;
end $$;
comment on function gatepost.has_gateway(uuid) is
    'Whether `gateways` has this row. A transaction that may write gets the lock of the look-up back. Granted to no role.';

do $migration$
declare
    change record;
    present text;
begin
    for change in
        select f.name::regprocedure,
            'not exists (select from public.gateways g where g.id = bound.gateway_id)' as part,
            'not gatepost.has_gateway(bound.gateway_id)' as made
        from unnest(array['gatepost.me()', 'gatepost.me(text)']) f (name)
        union all
        -- The foreign key of audit_logs locks `devices` more than looking a device up does.
        select f.name::regprocedure, $sql$
        select * into part from gatepost.merge_part(gateway, 'audit_logs',$sql$, $sql$
        exit when cardinality(ids) = 0
            or not gatepost.may_write('select from public.devices for key share');
        select * into part from gatepost.merge_part(gateway, 'audit_logs',$sql$
        from unnest(array[
            'gatepost.merge_of(uuid, interval)',
            'gatepost.merge_page_of(uuid, interval)',
            'gatepost.merge_page_of(uuid, interval, integer)'
        ]) f (name)
        union all
        -- For a token, too, reports lock before they read.
        select 'gatepost.try_reports(text)'::regprocedure,
            $sql$            execute format('select array(%s)', part.ids) into ids using me;
$sql$,
            $sql$            continue when not gatepost.may_write(
                replace(replace(part.statement, '$1', 'null'), '$2', 'null')
            );
            execute format('select array(%s)', part.ids) into ids using me;
$sql$
        union all
        select 'gatepost.enroll(text, text, text, integer, cidr, text[], boolean)'::regprocedure,
            l.part,
            format($sql$    begin
%s    raise sqlstate 'ZG000';
    exception when sqlstate 'ZG000' then
        null;
    end;
$sql$, l.part)
        from (values
            ($sql$    select coalesce(g.name, r.gateway_name) as gateway, r.gateway_id into bound
    from gatepost.gateway_role r
    left join public.gateways g on g.id = r.gateway_id
    where r.role_name = session_user
        and (not is_owner or coalesce(g.name, r.gateway_name) = name);
$sql$),
            ($sql$    select g.id, g.public_key, g.deleted_at,
        (public_key, coalesce(endpoint, g.endpoint), coalesce(listen_port, g.listen_port),
            coalesce(vpn_cidr, g.vpn_cidr), coalesce(dns_servers, g.dns_servers))
        is not distinct from
        (g.public_key, g.endpoint, g.listen_port, g.vpn_cidr, g.dns_servers) as is_same
    into present
    from public.gateways g
    where g.name = name;
$sql$)
        ) l (part)
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
