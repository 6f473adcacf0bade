#include "CSocketSwitch.h"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>

/// The address and port of one end, as the kernel's question wants them. 0: neither IPv4 nor IPv6.
static int take_address(const struct sockaddr_storage *name, __be32 *address, __be16 *port) {
    if (name->ss_family == AF_INET) {
        const struct sockaddr_in *four = (const void *)name;
        memcpy(address, &four->sin_addr, 4);
        *port = four->sin_port;
        return 1;
    }
    const struct sockaddr_in6 *six = (const void *)name;
    memcpy(address, &six->sin6_addr, 16);
    *port = six->sin6_port;
    return name->ss_family == AF_INET6;
}

enum ss_peer ss_peer_of(int fd) {
    struct sockaddr_storage own, peer;
    unsigned own_length = sizeof own, peer_length = sizeof peer;
    if (ss_sys_getsockname(fd, &own, &own_length) != 0 || ss_sys_getpeername(fd, &peer, &peer_length) != 0) return SS_PEER_UNKNOWN;
    struct {
        struct nlmsghdr header;
        struct inet_diag_req_v2 request;
    } question = {
        .header = {.nlmsg_len = sizeof question, .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST},
        .request = {.sdiag_family = (uint8_t)own.ss_family, .sdiag_protocol = IPPROTO_TCP, .idiag_states = ~0u},
    };
    struct inet_diag_sockid *id = &question.request.id;
    id->idiag_cookie[0] = id->idiag_cookie[1] = INET_DIAG_NOCOOKIE;
    // Seen from there.
    if (!take_address(&peer, id->idiag_src, &id->idiag_sport) || !take_address(&own, id->idiag_dst, &id->idiag_dport))
        return SS_PEER_UNKNOWN;
    int link = (int)ss_syscall6(SYS_socket, AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG, 0, 0, 0);
    if (link < 0) return SS_PEER_UNKNOWN;
    struct {
        struct nlmsghdr header;
        union {
            struct inet_diag_msg found;
            struct nlmsgerr refused;
        };
        char more[256];
    } answer;
    memset(&answer, 0, sizeof answer);
    long length = ss_sys_sendto(link, &question, sizeof question, MSG_DONTWAIT);
    if (length == (long)sizeof question) length = ss_sys_recvfrom(link, &answer, sizeof answer, MSG_DONTWAIT);
    ss_sys_close(link);
    long content = length - (long)sizeof answer.header;
    if (content >= (long)sizeof answer.found && answer.header.nlmsg_type == SOCK_DIAG_BY_FAMILY)
        return answer.found.idiag_inode == 0 ? SS_PEER_ORPHAN : SS_PEER_HELD;
    int isGone = content >= (long)sizeof answer.refused && answer.header.nlmsg_type == NLMSG_ERROR && answer.refused.error == -ENOENT;
    return isGone ? SS_PEER_GONE : SS_PEER_UNKNOWN;
}
