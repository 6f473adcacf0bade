// Uses every descriptor that it may have (run it with a limit of 64), and sees the numbers and the error that it expects.
#include "loopback.h"
#include <sys/resource.h>

int main(void) {
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    printf("limit %ld\n", (long)limit.rlim_cur);
    int client, server;
    connect_pair(&client, &server);
    printf("%d %d\n", client, server);
    echo(client, server, 100, 1000);
    int pairs[20][2];
    for (int i = 0; i < 20; i++) connect_pair(&pairs[i][0], &pairs[i][1]);
    for (int i = 0; i < 20; i++) echo(pairs[i][0], pairs[i][1], 20, 500);
    for (int i = 0; i < 20; i++) printf("%d %d\n", pairs[i][0], pairs[i][1]), close(pairs[i][0]), close(pairs[i][1]);
    int fd, last = -1;
    while ((fd = socket(AF_INET, SOCK_STREAM, 0)) >= 0) last = fd;
    printf("%s\n", errno == EMFILE ? "full" : strerror(errno));
    CHECK(last > 40);
    for (fd = server + 1; fd <= last; fd++) CHECK(close(fd) == 0);
    echo(client, server, 100, 1000);
    printf("done\n");
    return 0;
}
