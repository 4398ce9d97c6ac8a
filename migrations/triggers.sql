-- Installs missing triggers, as the last step that affects writes of the control plane. Each takes a
-- short lock on its table. If the lock is not free, `gatepost migrate` gives up and tries again before
-- a queued writer runs into its deadlock timeout. No weaker lock is taken first: the server ends a transaction at
-- once if it raises its lock on a table while another session with a lock on it waits. `enable always` also
-- covers sessions with session_replication_role = replica.

set local search_path = pg_catalog, pg_temp;
set local lock_timeout = '500ms';

do $$
declare
    missing record;
begin
    for missing in
        select m.*, exists (
            select
            from pg_trigger t
            where t.tgrelid = to_regclass('public.' || m.relation)
                and t.tgname = m.trigger
                and t.tgfoid = to_regproc('gatepost.' || m.function)
        ) as is_off,
        exists (
            select
            from pg_trigger t
            where t.tgrelid = to_regclass('public.' || m.relation) and t.tgname = m.trigger
        ) as is_there
        from gatepost.missing_trigger m
        -- Of a table that is gone agents say so.
        where to_regclass('public.' || m.relation) is not null
    loop
        -- Only enable an existing trigger: dropping it would block readers as well.
        if not missing.is_off then
            execute format('lock table public.%I in %s mode', missing.relation,
                case when missing.is_there then 'access exclusive' else 'share row exclusive' end);
            execute format(
                'drop trigger if exists %I on public.%I', missing.trigger, missing.relation
            );
            execute format(
                'create trigger %I after %s on public.%I %s for each statement '
                    'execute function gatepost.%I()',
                missing.trigger, missing.event, missing.relation, missing.clause, missing.function
            );
        end if;
        execute format(
            'alter table public.%I enable always trigger %I', missing.relation, missing.trigger
        );
    end loop;
    -- Earlier writes left no marks, so all agents read everything.
    if found and exists (select from gatepost.gateway_role) then
        insert into gatepost.change (gateway_id, kind, ids) values (gatepost.everyone(), 'all', '{}');
        perform gatepost.hint_all();
    end if;
end $$
