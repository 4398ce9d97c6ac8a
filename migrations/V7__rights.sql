-- Whoever may act for a gateway may call these, and nothing else.

set role gatepost_owner;
set local search_path = pg_catalog, pg_temp;

revoke execute on all functions in schema gatepost from public;
grant execute on function
    gatepost.hello(),
    gatepost.snapshot_gateway(),
    gatepost.snapshot_settings(),
    gatepost.snapshot_peers(),
    gatepost.snapshot_memberships(),
    gatepost.snapshot_policies(),
    gatepost.attach(boolean),
    gatepost.poll(text, text),
    gatepost.changes(text, text),
    gatepost.peers_by_device(uuid[]),
    gatepost.memberships_by_user(uuid[]),
    gatepost.policies_by_id(uuid[]),
    gatepost.report(uuid[], timestamptz[], timestamptz[]),
    gatepost.synced(timestamptz, text),
    gatepost.audit(jsonb),
    gatepost.enroll(text, text, text, integer, cidr, text[]),
    gatepost.prune(interval)
to gatepost_gateway;

reset role;
