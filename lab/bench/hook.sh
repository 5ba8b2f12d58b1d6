#!/bin/sh
# What uacme, dehydrated and certbot call to have a TXT record made or taken away: as little as a hook can be.
# $BENCH_HOOK is the address of the bench, which does it (lab/bench/hooks.py) and answers when the name servers have it.
set -eu

call() {
    curl --silent --show-error --fail --noproxy '*' --output /dev/null --data-binary "$2" "http://$BENCH_HOOK/$1"
}

# NAME TOKEN VALUE, as often as there are names: the lines "NAME VALUE".
lines() {
    while [ $# -ge 3 ]; do
        echo "$1 $3"
        shift 3
    done
}

if [ -n "${CERTBOT_DOMAIN:-}" ]; then
    # Once for each name. Only the last one needs to wait: certbot asks the CA to look when all are made.
    if [ -n "${CERTBOT_AUTH_OUTPUT+set}" ]; then
        call remove "$CERTBOT_DOMAIN $CERTBOT_VALIDATION"
    elif [ "$CERTBOT_REMAINING_CHALLENGES" = 0 ]; then
        call add "$CERTBOT_DOMAIN $CERTBOT_VALIDATION"
    else
        call add-only "$CERTBOT_DOMAIN $CERTBOT_VALIDATION"
    fi
    exit
fi

method=$1
shift
case $method in
    # dehydrated: all names at once (HOOK_CHAIN=yes).
    deploy_challenge) call add "$(lines "$@")" ;;
    clean_challenge) call remove "$(lines "$@")" ;;
    # uacme: one name, for which it offers each of the CA's kinds of challenge.
    begin)
        [ "$1" = dns-01 ] || exit 1
        call add "$2 $4"
        ;;
    done | failed) call remove "$2 $4" ;;
esac
