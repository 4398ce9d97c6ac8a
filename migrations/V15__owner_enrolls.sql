-- An owner of the database enrols any number of gateways. Before, the first enrolment bound the owner's
-- role, which then was refused for every other gateway.

set role gatepost_owner;

do $$
declare
    present constant text := pg_get_functiondef(
        'gatepost.enroll(text, text, text, integer, cidr, text[], boolean)'::regprocedure);
    made text := present;
begin
    -- To which gateway an owner's role is bound says nothing about the others.
    made := replace(made, '    where r.role_name = session_user;
    if not found and not is_owner',
        '    where r.role_name = session_user
        and (not is_owner or coalesce(g.name, r.gateway_name) = name);
    if not found and not is_owner');
    made := replace(made, '    where r.role_name = session_user
        and (r.gateway_id is null',
        '    where r.role_name = session_user and bound.gateway is not null
        and (r.gateway_id is null');
    if made not like '%(not is_owner or coalesce(g.name, r.gateway_name) = name)%'
        or made not like '%and bound.gateway is not null%'
    then
        raise exception 'gatepost.enroll() is not as expected';
    end if;
    execute made;
end $$;

reset role;
