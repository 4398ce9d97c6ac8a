-- Inserts of devices, users and groups cost their writers no look-up. A row that is deleted and inserted again is read
-- again, and so is everything once a table was altered.
--
-- An inserted device, user or group notifies no agent. Foreign keys let other rows refer to it only later, and these
-- notify. A policy may name it before, which has no effect without a peer. Where a statement deletes the row and
-- inserts it again, the deletion notifies. In a session that skips foreign keys the other rows may be there already,
-- so all agents are notified.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

-- Called for deleted rows. Foreign keys let nothing refer to these, unless the statement inserts them again.
create or replace function gatepost.hint_targets(ids uuid[]) returns void
language plpgsql set lock_timeout = '50ms' set plan_cache_mode = force_generic_plan set enable_seqscan = off
set jit = off as $$
declare
    is_used boolean := true;
begin
    if not exists (select from gatepost.listener) or pg_notification_queue_usage() >= 0.5 then
        return;
    elsif cardinality(ids) <= 1000 and current_setting('transaction_isolation') <> 'serializable' then
        begin
            is_used := exists (select from public.policy_targets t where t.target_id = any (ids))
                or exists (select from public.wireguard_peers p where p.device_id = any (ids))
                or exists (select from public.devices d where d.user_id = any (ids))
                or exists (select from public.group_memberships m where m.group_id = any (ids));
            raise sqlstate 'ZG000';
        exception when sqlstate 'ZG000' then
            null;
        end;
    end if;
    if is_used then
        perform pg_notify('gatepost_all', '');
    end if;
end $$;
comment on function gatepost.hint_targets(uuid[]) is
    'Notifies all agents if a policy, peer, device or membership refers to one of these users, devices or groups.';

-- A statement that alters a table may rewrite its values or add a column with others, and fires no trigger. A table
-- that is rewritten gets another relfilenode, and an added column raises relnatts. GRANT changes neither.
create or replace function gatepost.triggers_version() returns text
language plpgsql stable as $$
declare
    -- In a variable: a condition would call to_regclass() for each row.
    tables constant oid[] := array[
        to_regclass('public.users'), to_regclass('public.devices'),
        to_regclass('public.wireguard_peers'), to_regclass('public.gateways'),
        to_regclass('public.ip_allocations'), to_regclass('public.policies'),
        to_regclass('public.policy_targets'), to_regclass('public.policy_destinations'),
        to_regclass('public.groups'), to_regclass('public.group_memberships'),
        to_regclass('public.settings')
    ];
begin
    return (
        select count(*) || ':' || sum(hashtextextended(a.version, a.oid::bigint))
        from (
            select t.oid, t.xmin::text as version
            from pg_trigger t
            where t.tgrelid = any (tables) and t.tgname like 'gatepost\_%'
            union all
            select c.oid, c.relfilenode || '/' || c.relnatts from pg_class c where c.oid = any (tables)
        ) a
    );
end $$;
comment on function gatepost.triggers_version() is
    'Differs after a watched table was rewritten or got a column, and after any alteration of Gatepost''s triggers, also if a later one took it back.';

do $migration$
declare
    edits constant text[] := array[
        ['devices_inserted', 'told := gatepost.hint_targets(touched) is not null;',
        'told := current_setting(''session_replication_role'') <> ''replica'' or gatepost.hint_all() is not null;'],
        ['targets_inserted', 'told := gatepost.hint_targets(touched) is not null;',
        'told := current_setting(''session_replication_role'') <> ''replica'' or gatepost.hint_all() is not null;'],
        ['all_changes', '    from unnest(marks) m, unnest(m.ids) i;
', '    from unnest(marks) m, unnest(m.ids) i;
    -- A row that was deleted and inserted again may read otherwise, and so does what refers to a deleted row.
    altered := altered || targets;
    altered_users := altered_users || targets;
    altered_groups := altered_groups || targets;
'],
        ['address', 'and exists (select from public.policy_targets t where t.target_id = any (w.ids))
    union all', 'and exists (select from public.policy_targets t where t.target_id = any (w.ids))
    union all
    select p.gateway_id, w.kind, array_agg(distinct m.group_id), null
    from unnest(waiting) w
    cross join unnest(w.ids) i
    cross join lateral (
        select m.group_id, m.user_id from public.group_memberships m where m.group_id = i offset 0
    ) m
    cross join lateral (
        select d.id from public.devices d where d.user_id = m.user_id offset 0
    ) d
    cross join lateral (
        select p.gateway_id
        from public.wireguard_peers p
        where p.device_id = d.id and num_nonnulls(p.deleted_at) = 0
        offset 0
    ) p
    where w.kind = ''target''
    group by p.gateway_id, w.kind
    union all'],
        ['address', 'where w.kind = ''device''', 'where w.kind in (''device'', ''target'')'],
        ['address', 'where w.kind in (''user'', ''membership'')',
        'where w.kind in (''user'', ''membership'', ''target'')'],
        ['unusable', 'triggers were altered since the cursor',
        'a table or its triggers were altered since the cursor'],
        ['all_changes', '    -- Most changes are of devices alone', '    if cardinality(targets) > 0 then
        owners := owners || array(
            select d.user_id
            from public.devices d
            where d.id = any (devices) and (d.id = any (targets) or d.user_id = any (targets))
        );
    end if;
    -- Most changes are of devices alone']
    ];
    edit text[];
    edited regprocedure;
    present text;
begin
    foreach edit slice 1 in array edits loop
        for edited in
            select p.oid::regprocedure from pg_proc p
            where p.pronamespace = 'gatepost'::regnamespace and p.proname = edit[1]
        loop
            present := pg_get_functiondef(edited);
            if position(edit[2] in present) = 0 then
                raise exception '% is not as expected: it lacks "%"', edited, edit[2];
            end if;
            execute replace(present, edit[2], edit[3]);
        end loop;
    end loop;
end $migration$;

revoke execute on all functions in schema gatepost from public;

reset role;
