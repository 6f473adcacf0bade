/// The addresses on which switched processes listen, by network namespace: how a connector is told at once that nobody
/// will ever answer it.
struct ListenerRegistry {
    private var counts: [UInt64: [Endpoint: Int]] = [:]

    /// Different addresses, over all namespaces.
    private(set) var count = 0

    mutating func add(_ endpoint: Endpoint, namespace: UInt64) {
        let found = counts[namespace]?[endpoint] ?? 0
        counts[namespace, default: [:]][endpoint] = found + 1
        if found == 0 { count += 1 }
    }

    mutating func remove(_ endpoint: Endpoint, namespace: UInt64) {
        guard let found = counts[namespace]?[endpoint] else { return }
        if found > 1 {
            counts[namespace]?[endpoint] = found - 1
        } else {
            counts[namespace]?[endpoint] = nil
            if counts[namespace]?.isEmpty == true { counts[namespace] = nil }
            count -= 1
        }
    }

    /// Does anybody listen on `destination`, or on a wildcard address with its port? In `namespace`, or in any.
    func hasListener(for destination: Endpoint, namespace: UInt64, orAnyOther: Bool) -> Bool {
        func has(_ known: [Endpoint: Int]) -> Bool {
            known[destination] != nil || destination.wildcards.contains { known[$0] != nil }
        }
        if let known = counts[namespace], has(known) { return true }
        return orAnyOther && !destination.isLoopback && counts.values.contains(where: has)
    }
}
