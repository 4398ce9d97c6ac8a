-- Installs the triggers, last: only now does anything of ours touch the user's writes. Each takes a
-- short lock on its table; `gatepost migrate` gives up waiting after lock_timeout and tries again.
-- Enabled always: also for a session with session_replication_role = replica.

do $$
declare
    watched record;
    event text;
    clause text;
begin
    for watched in
        select *
        from (values
            ('wireguard_peers', 'peers_changed', 'peers_changed', 'peers_changed'),
            ('devices', 'devices_inserted', 'devices_updated', 'devices_deleted'),
            ('users', 'targets_inserted', 'users_updated', 'targets_deleted'),
            ('groups', 'targets_inserted', 'groups_updated', 'targets_deleted'),
            ('group_memberships', 'memberships_changed', 'memberships_changed',
                'memberships_changed'),
            ('policies', 'policies_changed', 'policies_changed', 'policies_changed'),
            ('policy_targets', 'policies_changed', 'policies_changed', 'policies_changed'),
            ('policy_destinations', 'policies_changed', 'policies_changed', 'policies_changed'),
            ('gateways', 'gateways_changed', 'gateways_changed', 'gateways_changed'),
            ('ip_allocations', 'allocations_changed', 'allocations_changed',
                'allocations_changed'),
            ('settings', 'settings_changed', 'settings_changed', 'settings_changed')
        ) as w (relation, on_insert, on_update, on_delete)
    loop
        foreach event in array array['insert', 'update', 'delete', 'truncate'] loop
            clause := case event
                when 'insert' then 'referencing new table as new_rows'
                when 'update' then 'referencing old table as old_rows new table as new_rows'
                when 'delete' then 'referencing old table as old_rows'
                else ''
            end;
            execute format(
                'create trigger %I after %s on public.%I %s for each statement '
                    'execute function gatepost.%I()',
                'gatepost_' || event, event, watched.relation, clause,
                case event
                    when 'insert' then watched.on_insert
                    when 'update' then watched.on_update
                    when 'delete' then watched.on_delete
                    else 'table_truncated'
                end
            );
            execute format(
                'alter table public.%I enable always trigger %I',
                watched.relation, 'gatepost_' || event
            );
        end loop;
    end loop;
end $$;
