/*
 * Work on all processors at once.
 *   parallel spin [MILLIONS]       one busy loop, then one on each processor: what the others cost it
 *   parallel processes [SECONDS]   a process on each processor that starts others and has memory of its own
 *   parallel threads [SECONDS]     threads of one address space that take pages away under each other's reads
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define MOST_CPUS 64

static int cpus;
static double deadline;
static atomic_int failed;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void stay_on(int cpu)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof set, &set) != 0)
		perror("sched_setaffinity");
}

static void start_all(void *(*run)(void *), int count)
{
	pthread_t threads[MOST_CPUS];
	for (long i = 0; i < count; i++)
		if (pthread_create(&threads[i], NULL, run, (void *)i) != 0) {
			perror("pthread_create");
			exit(1);
		}
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
}

/* spin */

static uint64_t rounds;

static void *spin(void *cpu)
{
	uint64_t x = 88172645463325252ull;
	stay_on((int)(long)cpu);
	for (uint64_t i = 0; i < rounds; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
	}
	if (x == 0)
		failed = 1; /* never; keeps the loop */
	return NULL;
}

static double timed_spin(int count)
{
	double from = now();
	start_all(spin, count);
	return now() - from;
}

static void spins(uint64_t millions)
{
	rounds = millions * 1000000;
	double one = timed_spin(1), all = timed_spin(cpus);
	printf("spin on 1 processor %.3f seconds, on all %.3f seconds, ratio %.3f\n", one, all, all / one);
}

/* processes */

static uint64_t word(uint64_t seed, uint64_t at)
{
	return (seed + at) * 0x9E3779B97F4A7C15ull;
}

static int wait_for(pid_t pid)
{
	int status;
	return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

static int process(int cpu)
{
	enum { PAGES = 256, STEP = PAGE / sizeof(uint64_t) };
	stay_on(cpu);
	for (uint64_t seed = (uint64_t)cpu << 32; now() < deadline; seed++) {
		uint64_t *own = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (own == MAP_FAILED)
			return 1;
		for (uint64_t page = 0; page < PAGES; page++)
			own[page * STEP] = word(seed, page);
		pid_t pid = fork();
		if (pid == 0) {
			/* What the child writes is the child's. */
			for (uint64_t page = 0; page < PAGES; page++) {
				if (own[page * STEP] != word(seed, page))
					_exit(1);
				own[page * STEP] = 0;
			}
			execl("/bin/busybox", "busybox", "true", NULL);
			_exit(127);
		}
		for (uint64_t page = 0; page < PAGES; page += 2)
			own[page * STEP]++;
		if (!wait_for(pid))
			return 1;
		for (uint64_t page = 0; page < PAGES; page++)
			if (own[page * STEP] != word(seed, page) + (page % 2 == 0))
				return 1;
		munmap(own, PAGES * PAGE);
	}
	return 0;
}

static void processes(void)
{
	pid_t pids[MOST_CPUS];
	for (int cpu = 0; cpu < cpus; cpu++) {
		pids[cpu] = fork();
		if (pids[cpu] == 0)
			_exit(process(cpu));
	}
	for (int cpu = 0; cpu < cpus; cpu++)
		if (!wait_for(pids[cpu])) {
			printf("processes FAILED: processor %d\n", cpu);
			failed = 1;
		}
}

/*
 * threads: each owns some pages. It takes one away, puts another in its place and writes a new number there; the number of the page's
 * life is odd meanwhile. Who reads a page in the middle of one life must find that life's number: an older one means that a translation
 * outlived its page.
 */

#define SLOTS_EACH 4

static struct {
	_Alignas(64) atomic_ulong life;
} slots[MOST_CPUS * SLOTS_EACH];
static unsigned char *pages;

static volatile uint64_t *content(int slot)
{
	return (volatile uint64_t *)(pages + (size_t)slot * PAGE);
}

static void renew(int slot, int fresh)
{
	unsigned long life = atomic_load(&slots[slot].life);
	void *at = pages + (size_t)slot * PAGE;
	atomic_store(&slots[slot].life, life + 1);
	int ok = fresh
		? mmap(at, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at
		: madvise(at, PAGE, MADV_DONTNEED) == 0;
	if (!ok || *content(slot) != 0) {
		printf("threads FAILED: a page that was taken away is still there\n");
		failed = 1;
	}
	*content(slot) = life + 2;
	atomic_store(&slots[slot].life, life + 2);
}

static void *thread(void *argument)
{
	int self = (int)(long)argument;
	stay_on(self);
	for (unsigned round = 0; !failed && now() < deadline; round++) {
		renew(self * SLOTS_EACH + (int)(round % SLOTS_EACH), round % 3 == 0);
		for (int slot = 0; slot < cpus * SLOTS_EACH; slot++) {
			unsigned long before = atomic_load(&slots[slot].life);
			uint64_t found = *content(slot);
			atomic_thread_fence(memory_order_seq_cst);
			if (before % 2 == 0 && atomic_load(&slots[slot].life) == before && found != before) {
				printf("threads FAILED: page %d is of life %llu instead of %lu\n", slot, (unsigned long long)found, before);
				failed = 1;
			}
		}
	}
	return NULL;
}

static void threads(void)
{
	pages = mmap(NULL, sizeof slots / sizeof slots[0] * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pages == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	start_all(thread, cpus);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	long amount = argc > 2 ? strtol(argv[2], NULL, 10) : 10;
	cpus = (int)sysconf(_SC_NPROCESSORS_ONLN);
	if (cpus > MOST_CPUS)
		cpus = MOST_CPUS;
	deadline = now() + (double)amount;
	if (strcmp(what, "spin") == 0) {
		spins(argc > 2 ? (uint64_t)amount : 300);
	} else if (strcmp(what, "processes") == 0) {
		processes();
	} else if (strcmp(what, "threads") == 0) {
		threads();
	} else {
		fprintf(stderr, "usage: parallel spin|processes|threads [AMOUNT]\n");
		return 2;
	}
	if (!failed)
		printf("%s on %d processors done\n", what, cpus);
	return failed != 0;
}
