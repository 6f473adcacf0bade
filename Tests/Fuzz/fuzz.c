// The fuzzer's outside: a process for each sequence, a watchdog, shrinking, and what is printed.
#include "fuzz.h"
#include <sys/mman.h>
#include <sys/wait.h>

static struct statistics totals;

/// The longest wait in a sequence (a slow reader's two seconds, on a busy machine) is far shorter.
enum { HANGS_AFTER_US = 8000000 };
enum verdict { EQUAL, DIFFERENT, BROKEN };

static enum verdict run_once(void) {
    struct statistics kept = totals;
    bool enabled[MAXIMUM_STEPS];
    struct plan plan = shared->plan;
    memcpy(enabled, shared->enabled, sizeof enabled);
    memset(shared, 0, sizeof *shared);
    shared->plan = plan;
    memcpy(shared->enabled, enabled, sizeof enabled);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        setpgid(0, 0);
        run_plan();
        _exit(0);
    }
    setpgid(pid, pid);
    shared->lastSign = now_us();
    int status = 0;
    bool isOver = false;
    for (unsigned round = 0; !isOver; round++) {
        isOver = waitpid(pid, &status, WNOHANG) == pid;
        if (!isOver && now_us() > shared->lastSign + HANGS_AFTER_US) break;
        if (!isOver) usleep(round < 50 ? 200 : 2000);
    }
    if (!isOver && options.stacks) {
        char command[200];
        snprintf(command, sizeof command, "for p in $(pgrep -g %d); do gdb -p $p -batch -ex 'thread apply all bt' 2>/dev/null; done", pid);
        if (system(command)) printf("   (no stacks)\n");
    }
    kill(-pid, SIGKILL);
    if (!isOver) {
        waitpid(pid, &status, 0);
        differ("hangs (%s, %s)", shared->world == NATIVE ? "TCP" : "the switch", shared->phase);
    } else if (WIFSIGNALED(status)) {
        differ("killed by signal %d (%s, %s)", WTERMSIG(status), shared->world == NATIVE ? "TCP" : "the switch", shared->phase);
    } else if (WEXITSTATUS(status) == 3) {
        differ("another process of it died (%s, %s)", shared->world == NATIVE ? "TCP" : "the switch", shared->phase);
    }
    struct statistics *now = &shared->statistics;
    totals = kept;
    totals.sequences += now->sequences, totals.steps += now->steps, totals.skipped += now->skipped;
    totals.splits += now->splits, totals.extraEdges += now->extraEdges;
    for (int i = 0; i < ENDS; i++) totals.dataCalls[i] += now->dataCalls[i], totals.onCompanion[i] += now->onCompanion[i];
    for (int i = 0; i < OPERATIONS; i++) totals.byOperation[i] += now->byOperation[i];
    if (shared->isError) return BROKEN;
    return shared->differs ? DIFFERENT : EQUAL;
}

static void print_program(void) {
    char text[400];
    struct plan *plan = &shared->plan;
    printf("   // %s, a connected to b%s%s, %s\n", plan->twoProcesses ? "a and b in two processes" : "both ends in one process",
           plan->inet6 ? " over IPv6" : "", plan->noDelay ? ", TCP_NODELAY" : "",
           plan->moveFirst ? "already on the companion" : "not yet on the companion");
    int number = 0;
    for (int i = 0; i < plan->count && (i <= shared->failedStep || shared->failedStep < 0); i++) {
        if (!shared->enabled[i]) continue;
        describe(&plan->steps[i], text, sizeof text);
        printf("%4d  %-80s // %s\n", ++number, text, shared->results[i]);
    }
    printf("   => %s\n", shared->verdict);
}

static void print_command(const char *self) {
    printf("   repeat: %s%s --seed %llu --only ", self, options.urgent ? " --urgent" : "", (unsigned long long)shared->plan.seed);
    bool first = true;
    for (int i = 0; i < shared->plan.count; i++)
        if (shared->enabled[i]) printf("%s%d", first ? "" : ",", i), first = false;
    printf("\n");
}

/// Whether the difference still appears with these steps; several tries, since processes interleave.
static bool still_differs(const bool *enabled, int tries) {
    memcpy(shared->enabled, enabled, sizeof shared->enabled);
    for (int i = 0; i < tries; i++)
        if (run_once() == DIFFERENT) return true;
    return false;
}

/// What the last run that differed said, since the next one with the same steps need not.
static struct {
    bool enabled[MAXIMUM_STEPS];
    char verdict[sizeof((struct shared *)0)->verdict], results[MAXIMUM_STEPS][256];
    int failedStep;
} seen;
static void note_difference(void) {
    memcpy(seen.enabled, shared->enabled, sizeof seen.enabled);
    memcpy(seen.verdict, shared->verdict, sizeof seen.verdict);
    memcpy(seen.results, shared->results, sizeof seen.results);
    seen.failedStep = shared->failedStep;
}
static void recall_difference(void) {
    memcpy(shared->enabled, seen.enabled, sizeof seen.enabled);
    memcpy(shared->verdict, seen.verdict, sizeof seen.verdict);
    memcpy(shared->results, seen.results, sizeof seen.results);
    shared->failedStep = seen.failedStep;
}

/// Leaves out steps as long as the difference stays: large groups first, then smaller ones.
static void shrink(unsigned seconds) {
    uint64_t deadline = now_us() + seconds * 1000000ull;
    bool best[MAXIMUM_STEPS];
    int count = shared->plan.count;
    memcpy(best, shared->enabled, sizeof best);
    for (int i = shared->failedStep + 1; i < count; i++) best[i] = false;
    note_difference();
    if (!still_differs(best, 20)) {
        printf("   (it did not come again in twenty runs: a matter of timing)\n");
        recall_difference();
        return;
    }
    note_difference();
    for (int group = count / 2; group >= 1; group /= 2) {
        bool progress = true;
        while (progress && now_us() < deadline) {
            progress = false;
            for (int start = 0; start < count && now_us() < deadline; start += group) {
                bool candidate[MAXIMUM_STEPS], any = false;
                memcpy(candidate, best, sizeof best);
                for (int i = start; i < start + group && i < count; i++) any |= candidate[i], candidate[i] = false;
                if (!any || !still_differs(candidate, 2)) continue;
                note_difference();
                memcpy(best, candidate, sizeof best);
                progress = group == 1;
            }
        }
    }
    recall_difference();
}

static int examine(uint64_t seed, const char *only, unsigned shrinkSeconds, const char *self) {
    make_plan(&shared->plan, seed);
    memset(shared->enabled, only == NULL, sizeof shared->enabled);
    for (const char *at = only; at && *at;) {
        char *after;
        unsigned long index = strtoul(at, &after, 10);
        if (index < MAXIMUM_STEPS) shared->enabled[index] = true;
        at = *after ? after + 1 : after;
        if (after == at) break;
    }
    enum verdict verdict = run_once();
    if (verdict == EQUAL) return EQUAL;
    printf("seed %llu: %s\n", (unsigned long long)seed, verdict == BROKEN ? "cannot be run" : "a difference");
    printf("   => %s (step %d, %s)\n", shared->verdict, shared->failedStep, shared->phase ? shared->phase : "");
    fflush(stdout);
    if (verdict == DIFFERENT && shrinkSeconds) shrink(shrinkSeconds);
    if (verdict == DIFFERENT) print_program(), print_command(self);
    fflush(stdout);
    return verdict;
}

static void print_totals(void) {
    printf("%llu sequences, %llu steps (%llu left out), %llu receives split at a carrier change, %llu edges more\n",
           (unsigned long long)totals.sequences, (unsigned long long)totals.steps, (unsigned long long)totals.skipped,
           (unsigned long long)totals.splits, (unsigned long long)totals.extraEdges);
    for (int i = 0; i < ENDS; i++)
        printf("%s sends that moved bytes: %llu, of them on the companion %.1f %%\n", i ? "acceptor's" : "connector's",
               (unsigned long long)totals.dataCalls[i], totals.dataCalls[i] ? 100.0 * (double)totals.onCompanion[i] / (double)totals.dataCalls[i] : 0);
    for (int i = 0; i < OPERATIONS; i++)
        if (totals.byOperation[i]) printf("%s %llu%s", operation_name(i), (unsigned long long)totals.byOperation[i], i < LEAVE ? ", " : "");
    printf("\n");
    if (totals.onCompanion[0] + totals.onCompanion[1] == 0) {
        printf("nothing went over a companion\n");
        exit(2);
    }
}

int main(int count, char **arguments) {
    uint64_t seed = 0;
    unsigned seconds = 20, shrinkSeconds = 60, limit = 1;
    const char *only = NULL, *self = "python3 Tests/Fuzz/run.py";
    bool isOne = false;
    for (int i = 1; i < count; i++) {
        const char *name = arguments[i], *value = i + 1 < count ? arguments[i + 1] : "";
        if (!strcmp(name, "--seed")) seed = strtoull(value, NULL, 0), isOne = true, i++;
        else if (!strcmp(name, "--from")) seed = strtoull(value, NULL, 0), isOne = false, i++;
        else if (!strcmp(name, "--only")) only = value, i++;
        else if (!strcmp(name, "--seconds")) seconds = (unsigned)atoi(value), i++;
        else if (!strcmp(name, "--shrink")) shrinkSeconds = (unsigned)atoi(value), i++;
        else if (!strcmp(name, "--differences")) limit = (unsigned)atoi(value), i++;
        else if (!strcmp(name, "--service")) options.service = value, i++;
        else if (!strcmp(name, "--no-bad-pointers")) options.noBadPointers = true;
        else if (!strcmp(name, "--stacks")) options.stacks = true;
        else if (!strcmp(name, "--urgent")) options.urgent = true;
        else if (!strcmp(name, "--no-splice")) options.noSplices = true;
        else if (!strcmp(name, "--shared-epoll")) options.sharedEpoll = true;
        else if (!strcmp(name, "--no-exact-restarts")) options.noExactRestarts = true;
        else return fprintf(stderr, "unknown option %s\n", name), 64;
    }
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (isOne) {
        int verdict = examine(seed, only, shrinkSeconds, self);
        print_totals();
        if (verdict == EQUAL) printf("no difference\n");
        return verdict;
    }
    uint64_t end = now_us() + seconds * 1000000ull, lastWord = now_us();
    unsigned differences = 0;
    int worst = EQUAL;
    printf("seeds from %llu, for %u s\n", (unsigned long long)seed, seconds);
    for (; now_us() < end && differences < limit; seed++) {
        int verdict = examine(seed, NULL, shrinkSeconds, self);
        if (verdict > worst) worst = verdict;
        differences += verdict != EQUAL;
        if (now_us() - lastWord > 60000000) {
            lastWord = now_us();
            printf("… %llu sequences, %llu steps\n", (unsigned long long)totals.sequences, (unsigned long long)totals.steps);
            fflush(stdout);
        }
    }
    print_totals();
    printf("seeds up to %llu: %u differences\n", (unsigned long long)seed - 1, differences);
    return worst;
}
