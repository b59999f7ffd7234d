# The conformance suite on this system's KVM.
exec /lab/conform --emulated --from "${LAB_FROM:-0}" --filter "${LAB_FILTER:-}" \
    --skip /lab/skipped --patience 240
