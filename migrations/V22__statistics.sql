-- Reads cost no more in a database without statistics, as after a restore or a bulk load until autovacuum has
-- analyzed it. Without them, the server expects one row of wireguard_peers wherever a gateway's live peers are
-- meant, and looks through all of these, once for each row of another table.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

-- What changed is found from the ids that changed. `offset 0` keeps the server from beginning at the other end, and
-- `num_nonnulls` from the index of the live peers by gateway, of which it would read all.
do $migration$
declare
    peer_of_device constant text := 'cross join lateral (
            select p.device_id
            from public.wireguard_peers p
            where p.device_id = i.id and p.gateway_id = me and num_nonnulls(p.deleted_at) = 0
            offset 0
        ) p';
    device_of_user constant text := 'cross join lateral (
            select d.id from public.devices d where d.user_id = u.id offset 0
        ) i';
    -- Whether a user has a peer here.
    joined constant text := 'select
                from public.devices d
                join public.wireguard_peers p on p.device_id = d.id
                where d.user_id = %s and p.gateway_id = me and p.deleted_at is null';
    nested constant text := 'select
                from (select d.id from public.devices d where d.user_id = %s offset 0) own
                where exists (
                    select
                    from public.wireguard_peers p
                    where p.device_id = own.id and p.gateway_id = me and num_nonnulls(p.deleted_at) = 0
                    offset 0
                )
                offset 0';
    edits constant text[] := array[
        ['all_changes', 'from public.wireguard_peers p
        where p.gateway_id = me and p.deleted_at is null and p.device_id = any (altered)',
        'from unnest(altered) i (id)
        ' || peer_of_device],
        ['all_changes', 'from public.devices d
        join public.wireguard_peers p on p.device_id = d.id
        where d.user_id = any (altered_users) and p.gateway_id = me and p.deleted_at is null',
        'from unnest(altered_users) u (id)
        ' || device_of_user || '
        ' || peer_of_device],
        ['all_changes', 'from public.wireguard_peers p
        where p.gateway_id = me and p.deleted_at is null and p.assigned_ip = any (addresses)',
        'from unnest(addresses) a (address)
        cross join lateral (
            select p.device_id
            from public.wireguard_peers p
            where p.gateway_id = me and p.assigned_ip = a.address and p.deleted_at is null
            offset 0
        ) p'],
        ['followed', 'select distinct d.user_id
        from public.devices d
        join public.wireguard_peers p on p.device_id = d.id
        where d.user_id = any (members) and p.gateway_id = me and p.deleted_at is null',
        'select u.id from unnest(members) u (id) where exists (
            ' || format(nested, 'u.id') || '
        )'],
        ['followed', 'from public.policy_targets t
        join public.policies p on p.id = t.policy_id
        where t.target_id = any (targets) and p.is_active and p.deleted_at is null',
        'from unnest(targets) i (id)
        cross join lateral (
            select t.policy_id from public.policy_targets t where t.target_id = i.id offset 0
        ) t
        where exists (
            select
            from public.policies p
            where p.id = t.policy_id and p.is_active and p.deleted_at is null
            offset 0
        )'],
        ['changes_among', format(joined, 'i'), format(nested, 'i')],
        ['groups_here', 'select
                    from public.group_memberships m
                    join public.devices d on d.user_id = m.user_id
                    join public.wireguard_peers p on p.device_id = d.id
                    where m.group_id = g.id and p.gateway_id = me and p.deleted_at is null',
        'select
                    from (
                        select m.user_id from public.group_memberships m where m.group_id = g.id offset 0
                    ) member
                    where exists (
                        ' || format(nested, 'member.user_id') || '
                    )
                    offset 0'],
        ['memberships_by_user', 'from public.group_memberships m
    join public.groups g on g.id = m.group_id and g.deleted_at is null
    where m.user_id = any (user_ids)
        and exists (
            select
            from public.devices d
            join public.wireguard_peers p on p.device_id = d.id
            where d.user_id = m.user_id and p.gateway_id = me and p.deleted_at is null
        )',
        'from (select distinct i from unnest(user_ids) i) u (id)
    cross join lateral (
        select m.user_id, m.group_id from public.group_memberships m where m.user_id = u.id offset 0
    ) m
    where exists (
            select from public.groups g where g.id = m.group_id and g.deleted_at is null offset 0
        )
        and exists (
            ' || format(nested, 'u.id') || '
        )'],
        ['policies_of', 'select
                from public.wireguard_peers p
                where p.device_id = t.target_id and p.gateway_id = me and p.deleted_at is null',
        'select
                from public.wireguard_peers p
                where p.device_id = t.target_id and p.gateway_id = me and num_nonnulls(p.deleted_at) = 0
                offset 0'],
        ['policies_of', format(joined, 't.target_id'), format(nested, 't.target_id')],
        ['peers_by_device', 'from gatepost.live_peers() l
    where l.gateway_id = me and l.device_id = any (device_ids)',
        'from (select distinct i from unnest(device_ids) i) d (id)
    cross join lateral (
        select p.id
        from public.wireguard_peers p
        where p.device_id = d.id and p.gateway_id = me and num_nonnulls(p.deleted_at) = 0
        offset 0
    ) p
    cross join lateral (select l.* from gatepost.live_peers() l where l.id = p.id offset 0) l'],
        ['report', 'where p.device_id = any (device_ids) and p.gateway_id = me and p.deleted_at is null',
        'where p.device_id = any (device_ids) and p.gateway_id = me and num_nonnulls(p.deleted_at) = 0'],
        ['gateways_of_devices', 'p.deleted_at is null', 'num_nonnulls(p.deleted_at) = 0'],
        ['gateways_of_users', 'from public.devices d
    join public.wireguard_peers p on p.device_id = d.id and p.deleted_at is null
    where d.user_id = any (ids)',
        'from unnest(ids) u (id)
    ' || device_of_user || '
    cross join lateral (
        select p.gateway_id
        from public.wireguard_peers p
        where p.device_id = i.id and num_nonnulls(p.deleted_at) = 0
        offset 0
    ) p'],
        ['address', 'cross join unnest(w.ids) i
    join public.wireguard_peers p on p.device_id = i and p.deleted_at is null',
        'cross join unnest(w.ids) i
    cross join lateral (
        select p.gateway_id, p.device_id
        from public.wireguard_peers p
        where p.device_id = i and num_nonnulls(p.deleted_at) = 0
        offset 0
    ) p'],
        ['address', 'cross join unnest(w.ids) i
    join public.devices d on d.user_id = i
    join public.wireguard_peers p on p.device_id = d.id and p.deleted_at is null',
        'cross join unnest(w.ids) i
    cross join lateral (
        select d.id, d.user_id from public.devices d where d.user_id = i offset 0
    ) d
    cross join lateral (
        select p.gateway_id
        from public.wireguard_peers p
        where p.device_id = d.id and num_nonnulls(p.deleted_at) = 0
        offset 0
    ) p']
    ];
    edit text[];
    edited regprocedure;
    present text;
    variants integer;
begin
    foreach edit slice 1 in array edits loop
        variants := 0;
        for edited in
            select p.oid::regprocedure from pg_proc p
            where p.pronamespace = 'gatepost'::regnamespace and p.proname = edit[1]
        loop
            present := pg_get_functiondef(edited);
            if position(edit[2] in present) = 0 then
                raise exception '% is not as expected: it lacks "%"', edited, edit[2];
            end if;
            execute replace(present, edit[2], edit[3]);
            variants := variants + 1;
        end loop;
        if variants = 0 then
            raise exception 'gatepost.% is missing', edit[1];
        end if;
    end loop;
end $migration$;

-- An index is used by all its columns: a bitmap would be made of all marks or allocations of a gateway.
do $migration$
declare
    reading regprocedure;
begin
    for reading in
        select p.oid::regprocedure from pg_proc p
        where p.pronamespace = 'gatepost'::regnamespace
            and p.proname in ('marks_since', 'has_news', 'has_unaddressed', 'peers_by_device')
    loop
        execute format('alter function %s set enable_bitmapscan = off', reading);
    end loop;
end $migration$;

create function gatepost.lacks_statistics() returns boolean
language sql stable as $$
    select exists (
        select
        from unnest(array[
            'wireguard_peers', 'devices', 'users', 'ip_allocations', 'group_memberships', 'policy_targets',
            'policy_destinations'
        ]) t (relation)
        where pg_catalog.pg_relation_size(pg_catalog.to_regclass('public.' || t.relation)) > 262144
            and not exists (
                select
                from pg_catalog.pg_stats s
                where s.schemaname = 'public' and s.tablename = t.relation
            )
    )
$$;
comment on function gatepost.lacks_statistics() is
    'Whether a table of the control plane that is larger than 256 kB was never analyzed.';

-- What reads everything joins by hashing there: the server would expect one row of each table, and go through one
-- of them again for each row of another. The setting ends with the function that sets it.
do $migration$
declare
    reading regprocedure;
    present text;
begin
    for reading in
        select p.oid::regprocedure from pg_proc p
        where p.pronamespace = 'gatepost'::regnamespace
            and p.proname in ('snapshot_peers', 'snapshot_memberships', 'snapshot_policies')
    loop
        present := pg_get_functiondef(reading);
        if present !~ '\nbegin\n' then
            raise exception '% is not as expected', reading;
        end if;
        execute regexp_replace(present, '\nbegin\n', $$
begin
    if gatepost.lacks_statistics() then
        perform set_config('enable_nestloop', 'off', true);
    end if;
$$);
        execute format('alter function %s set enable_nestloop = on', reading);
    end loop;
end $migration$;

revoke execute on all functions in schema gatepost from public;

reset role;
