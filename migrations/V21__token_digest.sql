-- The digest of a token is worked out once for each call. Within the query it was worked out once for each
-- row of gatepost.gateway_token, where the table is small enough to be read as a whole.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

do $$
declare
    present constant text := pg_get_functiondef('gatepost.me(text)'::regprocedure);
    declared constant text := '    bound gatepost.gateway_token;
begin';
    looked_up constant text := 'where t.digest = sha256(convert_to(token, ''UTF8''));';
begin
    if position(declared in present) = 0 or position(looked_up in present) = 0 then
        raise exception 'gatepost.me(text) is not as expected';
    end if;
    execute replace(
        replace(present, declared, '    bound gatepost.gateway_token;
    of_token constant bytea := sha256(convert_to(token, ''UTF8''));
begin'),
        looked_up, 'where t.digest = of_token;'
    );
end $$;

reset role;
