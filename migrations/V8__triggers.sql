-- Which trigger watches what. triggers.sql installs those that are missing, at each migration: a table
-- that the control plane made anew has lost its own.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

-- Granted to nobody.
create view gatepost.watched as
select w.relation, e.event, 'gatepost_' || e.event as trigger, e.function, e.clause
from (values
    ('wireguard_peers', 'peers_changed', 'peers_changed', 'peers_changed'),
    ('devices', 'devices_inserted', 'devices_updated', 'devices_deleted'),
    ('users', 'targets_inserted', 'users_updated', 'targets_deleted'),
    ('groups', 'targets_inserted', 'groups_updated', 'targets_deleted'),
    ('group_memberships', 'memberships_changed', 'memberships_changed', 'memberships_changed'),
    ('policies', 'policies_changed', 'policies_changed', 'policies_changed'),
    ('policy_targets', 'policies_changed', 'policies_changed', 'policies_changed'),
    ('policy_destinations', 'policies_changed', 'policies_changed', 'policies_changed'),
    ('gateways', 'gateways_changed', 'gateways_changed', 'gateways_changed'),
    ('ip_allocations', 'allocations_changed', 'allocations_changed', 'allocations_changed'),
    ('settings', 'settings_changed', 'settings_changed', 'settings_changed')
) as w (relation, on_insert, on_update, on_delete)
cross join lateral (values
    ('insert', w.on_insert, 'referencing new table as new_rows'),
    ('update', w.on_update, 'referencing old table as old_rows new table as new_rows'),
    ('delete', w.on_delete, 'referencing old table as old_rows'),
    ('truncate', 'table_truncated', '')
) as e (event, function, clause);

-- Those that are not there, or do not fire in every session. Granted to nobody.
create view gatepost.missing_trigger as
select w.*
from gatepost.watched w
where not exists (
    select
    from pg_catalog.pg_trigger t
    where t.tgrelid = to_regclass('public.' || w.relation)
        and t.tgname = w.trigger
        and t.tgfoid = to_regproc('gatepost.' || w.function)
        and t.tgenabled = 'A'
);

-- The tables whose changes nobody marks, all or some: a trigger is missing, rows come by logical
-- replication, which fires no trigger of statements, or stand in partitions, or the table was made anew,
-- perhaps with the triggers of the former one, and access.sql has not seen it.
create function gatepost.unwatched() returns text[]
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select array(
        select m.relation from gatepost.missing_trigger m
        union
        select w.relation
        from gatepost.watched w
        join pg_subscription_rel r on r.srrelid = to_regclass('public.' || w.relation)
        union
        -- Whoever writes to a partition or a child by its own name fires none of the parent's.
        select w.relation
        from gatepost.watched w
        join pg_inherits i on i.inhparent = to_regclass('public.' || w.relation)
        union
        select w.relation
        from gatepost.watched w
        where not has_any_column_privilege(
            'gatepost_owner', to_regclass('public.' || w.relation), 'select'
        )
        union
        select v.relation
        from (values
            ('gatepost.peer', 'wireguard_peers'),
            ('gatepost.peer', 'devices'),
            ('gatepost.peer', 'users'),
            ('gatepost.peer', 'ip_allocations'),
            ('gatepost.target', 'policy_targets'),
            ('gatepost.target', 'devices'),
            ('gatepost.target', 'users'),
            ('gatepost.target', 'groups')
        ) as v (reader, relation)
        where not exists (
            select
            from pg_rewrite r
            join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
            where r.ev_class = to_regclass(v.reader)
                and d.refclassid = 'pg_class'::regclass
                and d.refobjid = to_regclass('public.' || v.relation)
        )
        order by 1
    )
$$;
revoke execute on function gatepost.unwatched() from public;
grant execute on function gatepost.unwatched() to gatepost_gateway;

reset role;
