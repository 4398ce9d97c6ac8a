-- An inserted device, user or group notifies no agent, so the insert costs its writer no look-up. Foreign keys let
-- nothing refer to the new row yet, except a policy, which needs a peer to have an effect. The rows of that peer come
-- later, and notify. In a session that skips foreign keys the others may be there already, so all agents are notified.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

do $migration$
declare
    looks_up constant text := 'told := gatepost.hint_targets(touched) is not null;';
    function regprocedure;
    present text;
begin
    foreach function in array array['gatepost.devices_inserted()', 'gatepost.targets_inserted()']::regprocedure[]
    loop
        present := pg_get_functiondef(function);
        if position(looks_up in present) = 0 then
            raise exception '% is not as expected', function;
        end if;
        execute replace(present, looks_up,
            'told := current_setting(''session_replication_role'') <> ''replica'' or gatepost.hint_all() is not null;');
    end loop;
end $migration$;

reset role;
