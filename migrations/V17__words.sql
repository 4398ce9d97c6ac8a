-- What groups are called and what status devices have, for answers to an operator. Agents read neither for
-- their work.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

create function gatepost.words_of(me uuid, group_ids uuid[], device_ids uuid[])
returns table (kind text, id uuid, word text)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set row_security = off as $$
begin
    return query
    select 'group'::text, g.id, g.name::text
    from public.groups g
    where g.id = any (gatepost.groups_here(me, group_ids))
    union all
    select 'device'::text, d.id, d.status::text
    from public.devices d
    where d.id = any (device_ids) and exists (
        select
        from public.wireguard_peers p
        where p.device_id = d.id and p.gateway_id = me and p.deleted_at is null
    );
end $$;
comment on function gatepost.words_of(uuid, uuid[], uuid[]) is
    'As gatepost.words(uuid[], uuid[]), for this gateway. Granted to no role.';

create function gatepost.words(group_ids uuid[], device_ids uuid[])
returns table (kind text, id uuid, word text)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select * from gatepost.words_of(gatepost.me(), $1, $2)
$$;
comment on function gatepost.words(uuid[], uuid[]) is
    'The names of those of these groups that have a member with a peer of this gateway, and the statuses of those of these devices that have one.';

create function gatepost.words(token text, group_ids uuid[], device_ids uuid[])
returns table (kind text, id uuid, word text)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select * from gatepost.words_of(gatepost.me($1), $2, $3)
$$;
comment on function gatepost.words(text, uuid[], uuid[]) is
    'As gatepost.words(uuid[],uuid[]), for the gateway of this token.';

revoke execute on all functions in schema gatepost from public;

reset role;
