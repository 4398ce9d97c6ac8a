-- Installs the triggers that are missing, last: only now does anything of ours touch the user's
-- writes. Each takes a short lock on its table; `gatepost migrate` gives up waiting and tries again, before
-- a writer that waits for us takes it for a deadlock. Enabled always: also for a session with
-- session_replication_role = replica.

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
            where t.tgrelid = ('public.' || m.relation)::regclass
                and t.tgname = m.trigger
                and t.tgfoid = to_regproc('gatepost.' || m.function)
        ) as is_off
        from gatepost.missing_trigger m
    loop
        -- To drop one would stop readers, too.
        if not missing.is_off then
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
    -- What was written meanwhile is not marked: whoever was there before reads everything.
    if found and exists (select from gatepost.gateway_role) then
        insert into gatepost.change (gateway_id, kind, ids) values (gatepost.everyone(), 'all', '{}');
        perform gatepost.hint_all();
    end if;
end $$
