# The conformance suite on this system's KVM. What the emulator wants is several words.
# shellcheck disable=SC2086
exec /lab/conform ${LAB_CONFORM:-} --from "${LAB_FROM:-0}" --filter "${LAB_FILTER:-}" \
    --skip /lab/skipped
