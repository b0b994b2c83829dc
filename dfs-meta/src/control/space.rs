//! When a storage node counts as nearly full. Pure.

/// Percent of its capacity in use from which a node is nearly full: repairs after the loss of another node need the rest.
const LOW_FROM_PERCENT: u64 = 90;
/// Percent below which it has room again. The gap keeps a node at the edge from being reported with each heartbeat.
const ROOM_BELOW_PERCENT: u64 = 85;

/// Whether a node with `used` of `capacity` bytes is nearly full, given whether it was when it last reported.
pub(super) fn is_low(was_low: bool, used: u64, capacity: u64) -> bool {
    let percent = if was_low { ROOM_BELOW_PERCENT } else { LOW_FROM_PERCENT };
    u128::from(used) * 100 >= u128::from(capacity) * u128::from(percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_at_the_edge_is_reported_once() {
        assert!(!is_low(false, 89, 100));
        assert!(is_low(false, 90, 100));
        assert!(is_low(true, 85, 100), "still, until there is real room");
        assert!(!is_low(true, 84, 100));
        assert!(!is_low(false, 85, 100));
        assert!(is_low(false, u64::MAX, u64::MAX));
    }
}
