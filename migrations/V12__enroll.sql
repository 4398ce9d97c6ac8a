-- A gateway's credential writes the gateway's row once. A thief of the credential cannot
-- move the gateway's clients to another key, endpoint or network.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

alter table gatepost.gateway_role add column may_enroll boolean not null default false;
comment on column gatepost.gateway_role.may_enroll is
    'Whether gatepost.enroll() may change the row of a gateway that has one. The change takes it back, and so does a grant for another gateway. A role that was granted before the gateway had a row needs no permission for its first enrolment.';

drop function gatepost.enroll(text, text, text, integer, cidr, text[]);

create function gatepost.enroll(
    name text,
    public_key text,
    endpoint text default null,
    listen_port integer default null,
    vpn_cidr cidr default null,
    dns_servers text[] default null,
    new_key boolean default false
) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
    is_owner constant boolean := pg_has_role(session_user, 'gatepost_owner', 'member')
        or has_table_privilege(session_user, 'public.gateways', 'insert');
    bound record;
    present record;
    is_same boolean;
    id uuid;
begin
    select coalesce(g.name, r.gateway_name) as gateway, r.gateway_id into bound
    from gatepost.gateway_role r
    left join public.gateways g on g.id = r.gateway_id
    where r.role_name = session_user;
    if not found and not is_owner then
        raise exception using
            errcode = 'GP001',
            message = format('role %s is bound to no gateway', session_user),
            hint = format('run `gatepost grant %s %s`', name, session_user);
    elsif bound.gateway <> name then
        raise exception using
            errcode = 'GP006',
            message = format('role %s is bound to gateway %s, not to %s', session_user,
                bound.gateway, name),
            hint = format('run `gatepost grant %s %s`', name, session_user);
    end if;

    -- Locks nothing: the row is another's to write while this transaction is open.
    select g.id, g.public_key, g.deleted_at,
        (public_key, coalesce(endpoint, g.endpoint), coalesce(listen_port, g.listen_port),
            coalesce(vpn_cidr, g.vpn_cidr), coalesce(dns_servers, g.dns_servers))
        is not distinct from
        (g.public_key, g.endpoint, g.listen_port, g.vpn_cidr, g.dns_servers) as is_same
    into present
    from public.gateways g
    where g.name = name;
    if present.id is null and (endpoint is null or listen_port is null or vpn_cidr is null) then
        raise exception using
            errcode = 'GP002',
            message = format('there is no gateway named %s', name),
            hint = 'give endpoint, listen port and vpn_cidr to make it';
    elsif present.id <> bound.gateway_id then
        raise exception using
            errcode = 'GP006',
            message = format('role %s is bound to a former gateway %s with id %s, and the present one '
                'has id %s', session_user, name, bound.gateway_id, present.id),
            hint = format('run `gatepost grant %s %s`', name, session_user);
    elsif present.deleted_at is not null then
        raise exception using
            errcode = 'GP002',
            message = format('gateway %s was deleted at %s', name, present.deleted_at),
            hint = 'set its deleted_at to null to use it again, or enroll under another name';
    elsif present.public_key <> public_key and not new_key
        -- Clients have no use for what is no key, such as a placeholder.
        and present.public_key ~ '^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$'
    then
        raise exception using
            errcode = 'GP008',
            message = format('gateway %s has public key %s, and this host has %s, which would lock '
                'out every client', name, present.public_key, public_key),
            hint = format('restore the former private key; to replace the key, run %s`gatepost enroll '
                '--new-key`, restart the agent, and give every client the new key',
                case when is_owner then '' else format(
                    '`gatepost grant --enroll %s %s` as an owner of the database, then ', name,
                    session_user) end);
    end if;
    id := coalesce(present.id, gen_random_uuid());
    is_same := coalesce(present.is_same, false);

    update gatepost.gateway_role r
    set may_enroll = r.may_enroll and is_same, gateway_id = id
    where r.role_name = session_user
        and (r.gateway_id is null or (not is_same and (r.may_enroll or is_owner)));
    if not found and not is_owner and not is_same then
        raise exception using
            errcode = 'GP008',
            message = format('role %s has enrolled gateway %s before, and may not change its row again',
                session_user, name),
            hint = format('run `gatepost grant --enroll %s %s` as an owner of the database, then '
                'enroll again', name, session_user);
    end if;
    insert into gatepost.gateway_role as r (role_name, gateway_name, gateway_id)
    select session_user, name, id where bound.gateway is null
    on conflict (role_name) do nothing;

    if is_same then
        return id;
    elsif present.id is null then
        insert into public.gateways (
            id, name, endpoint, public_key, listen_port, vpn_cidr, dns_servers
        )
        values (
            id, name, endpoint, public_key, listen_port, vpn_cidr, coalesce(dns_servers, '{}')
        );
    else
        update public.gateways g
        set public_key = public_key,
            endpoint = coalesce(endpoint, g.endpoint),
            listen_port = coalesce(listen_port, g.listen_port),
            vpn_cidr = coalesce(vpn_cidr, g.vpn_cidr),
            dns_servers = coalesce(dns_servers, g.dns_servers),
            updated_at = now()
        where g.id = id and g.public_key = present.public_key and g.deleted_at is null;
        if not found then
            raise exception using
                errcode = 'GP008',
                message = format('another transaction has just changed the row of gateway %s', name),
                hint = 'run `gatepost enroll` again';
        end if;
    end if;
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
comment on function gatepost.enroll(text, text, text, integer, cidr, text[], boolean) is
    'Makes the row of gateway `name` match its host. Null leaves a column unchanged. A role may do that once for the gateway it is bound to, and again after `gatepost grant --enroll`. Only `new_key` replaces a key. A role that owns this schema or may insert gateways may do it for any gateway, and is bound to it unless it is bound already. Returns the gateway''s id.';

revoke execute on all functions in schema gatepost from public;
grant execute on function gatepost.enroll(text, text, text, integer, cidr, text[], boolean)
    to gatepost_gateway;

reset role;
