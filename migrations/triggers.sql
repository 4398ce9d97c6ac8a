-- Installs the triggers that are missing, last: only now does anything of ours touch the user's writes.
-- Each takes a short lock on its table; `gatepost migrate` gives up waiting after lock_timeout and
-- tries again. Enabled always: also for a session with session_replication_role = replica.

do $$
declare
    missing record;
begin
    for missing in select * from gatepost.missing_trigger loop
        execute format('drop trigger if exists %I on public.%I', missing.trigger, missing.relation);
        execute format(
            'create trigger %I after %s on public.%I %s for each statement '
                'execute function gatepost.%I()',
            missing.trigger, missing.event, missing.relation, missing.clause, missing.function
        );
        execute format(
            'alter table public.%I enable always trigger %I', missing.relation, missing.trigger
        );
    end loop;
end $$
