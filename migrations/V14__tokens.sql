-- Gateways behind one pool log in as one role. Each call then names its gateway by a token, which is the
-- first parameter of the functions below. They are the functions that agents call without a token, made
-- from these: each has a parameter more, and asks gatepost.me(token) instead of gatepost.me().
--
-- A token is a parameter and never a setting: what one gateway leaves in a session, the next one finds.
-- For the same reason nothing that a session remembers is believed here.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

create table gatepost.gateway_token (
    digest bytea primary key,
    gateway_name text not null,
    gateway_id uuid not null,
    granted_at timestamptz not null default now(),
    revoked_at timestamptz
);
comment on table gatepost.gateway_token is
    'Which gateway acts with which token, known by its SHA-256. Granted to no role.';

create table gatepost.login (
    role_name name primary key,
    member_of name not null check (member_of in ('gatepost_gateway', 'gatepost_bell'))
);
comment on table gatepost.login is
    'Roles that log in for several gateways, or for a bell. Granted to no role.';

create function gatepost.me(token text) returns uuid
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
    bound gatepost.gateway_token;
begin
    if pg_is_in_recovery() then
        raise exception using
            errcode = '25006',
            message = 'this server is a standby',
            hint = 'name the primary too, and target_session_attrs=read-write';
    end if;
    select * into bound
    from gatepost.gateway_token t
    where t.digest = sha256(convert_to(token, 'UTF8'));
    if not found then
        raise exception using
            errcode = 'GP010',
            message = 'the token is bound to no gateway',
            hint = 'run `gatepost grant --token <gateway>`, and put what it prints into database.token_file';
    elsif bound.revoked_at is not null then
        raise exception using
            errcode = 'GP010',
            message = format('the token of gateway %s was revoked at %s', bound.gateway_name,
                bound.revoked_at),
            hint = format('run `gatepost grant --token %s`, and put what it prints into '
                'database.token_file', bound.gateway_name);
    elsif not exists (select from public.gateways g where g.id = bound.gateway_id) then
        raise exception using
            errcode = 'GP002',
            message = format('there is no gateway named %s', bound.gateway_name),
            hint = format('run `gatepost enroll` with the database''s owner, then `gatepost grant '
                '--token %s`', bound.gateway_name);
    end if;
    return bound.gateway_id;
end $$;
comment on function gatepost.me(text) is
    'The gateway that this token acts for. Errors: 25006 this is a standby, GP010 no gateway has the token or it was revoked, GP002 the gateway has no row.';

-- A session that several gateways use may remember what one of them wrote.
create or replace function gatepost.history() returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    is_own constant boolean :=
        exists (select from gatepost.gateway_role r where r.role_name = session_user)
        or pg_has_role(session_user, 'gatepost_bell', 'member');
    server text := case when is_own then current_setting('gatepost.server', true) end;
begin
    if coalesce(server, '') = '' then
        server := concat_ws('/',
            (select c.system_identifier from pg_control_system() c),
            left(pg_walfile_name(pg_current_wal_insert_lsn()), 8),
            extract(epoch from coalesce(
                (
                    select a.backend_start
                    from pg_stat_activity a
                    where a.backend_type = 'checkpointer'
                ),
                pg_postmaster_start_time()
            )),
            (select d.oid from pg_database d where d.datname = current_database())
        );
        if is_own then
            perform set_config('gatepost.server', server, false);
        end if;
    end if;
    return concat_ws('/', server, (select s.database_epoch from gatepost.state s),
        'gatepost.state'::regclass::oid);
end $$;
comment on function gatepost.history() is
    'Changes whenever a snapshot of before may mean something else now: another cluster, a restored backup, a promoted standby, a server that lost its last transactions in a crash. The answer costs milliseconds among a thousand sessions, so a session of one gateway or bell remembers it.';

do $migration$
declare
    -- The functions that agents call, and those between them and gatepost.me().
    originals constant regprocedure[] := array[
        'gatepost.epoch()',
        'gatepost.unusable(pg_snapshot, text)',
        'gatepost.all_changes(text, text)',
        'gatepost.policies_of(uuid[])',
        'gatepost.hello()',
        'gatepost.snapshot_gateway()',
        'gatepost.snapshot_settings()',
        'gatepost.snapshot_peers()',
        'gatepost.snapshot_memberships()',
        'gatepost.snapshot_policies()',
        'gatepost.changes_among(text, text, uuid[])',
        'gatepost.peers_by_device(uuid[])',
        'gatepost.memberships_by_user(uuid[])',
        'gatepost.policies_by_id(uuid[])',
        'gatepost.news(text, text)',
        'gatepost.attach(boolean)',
        'gatepost.marks(text, text)',
        'gatepost.lost_marks(text[], text[], uuid[], uuid[], uuid[], timestamptz[])',
        'gatepost.report(uuid[], timestamptz[], timestamptz[])',
        'gatepost.audit(jsonb)',
        'gatepost.proven(timestamptz, text, text, text, text)',
        'gatepost.merge()',
        'gatepost.try_reports()',
        'gatepost.hosts()',
        'gatepost.forget_host(text, text)'
    ];
    names constant text := (
        select string_agg(distinct p.proname, '|')
        from unnest(originals) o
        join pg_proc p on p.oid = o
    ) || '|me';
    original record;
    made text;
begin
    set local check_function_bodies = off;
    -- By its position: a table of the control plane may have a column `token`.
    for original in
        select p.oid, p.proname as name, pg_get_functiondef(p.oid) as definition, p.prosrc as body
        from unnest(originals) o
        join pg_proc p on p.oid = o
    loop
        made := regexp_replace(original.body, 'gatepost\.(' || names || ')\(\)',
            'gatepost.\1($1)', 'g');
        made := regexp_replace(made, 'gatepost\.(' || names || ')\((?!\$1\))',
            'gatepost.\1($1, ', 'g');
        -- gatepost.try_reports() knows the owner of the database by its role.
        made := replace(made, '(
        select r.gateway_id from gatepost.gateway_role r where r.role_name = session_user
    )', 'gatepost.me($1)');
        -- None can listen in a session of a pool.
        made := replace(made, 'attach.listens', 'false');
        made := replace(original.definition, original.body, made);
        made := replace(made, format('FUNCTION gatepost.%s()', original.name),
            format('FUNCTION gatepost.%s(token text)', original.name));
        made := replace(made, format('FUNCTION gatepost.%s(', original.name),
            format('FUNCTION gatepost.%s(token text, ', original.name));
        made := replace(made, '(token text, token text', '(token text');
        execute made;
        execute format('comment on function %s is %L',
            (
                select p.oid::regprocedure
                from pg_proc p
                where p.pronamespace = 'gatepost'::regnamespace and p.proname = original.name
                    and p.proargnames[1] = 'token'
            ),
            format('As %s, for the gateway of this token.', original.oid::regprocedure));
    end loop;
end $migration$;

do $$
declare
    present constant text := pg_get_functiondef('gatepost.misfits()'::regprocedure);
begin
    execute replace(present, '''event'', ''refused''',
        '''event'', ''refused'', ''bell'', ''merger'', ''gateway_token'', ''login''');
end $$;

revoke execute on all functions in schema gatepost from public;

reset role;
