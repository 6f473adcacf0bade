import CSocketSwitch

/// What the service has sent to this process, taken in. Cheap when there is nothing.
package func switchLookAtMailboxes() {}
