/*
 * Page tables at work: every way in which a page comes, changes and goes, with the contents verified each time.
 *   faults [ROUNDS]
 * A stale or missing translation shows as a wrong word, and the address and both values are printed.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define HUGE_PAGE (2ul << 20)
#define WORDS (PAGE / sizeof(uint64_t))

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdull;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ull;
	return x ^ x >> 33;
}

static void fail(const char *what, const volatile void *at, uint64_t got, uint64_t expected)
{
	printf("FAIL %s at %p: %#lx, expected %#lx\n", what, (const void *)at, got, expected);
	fflush(stdout);
	_exit(1);
}

static char *area(size_t size, int flags)
{
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED) {
		perror("FAIL mmap");
		_exit(1);
	}
	return p;
}

/* Two words of every page are enough to see whose page it is; whole pages would only measure the memory. */
static void put(char *p, size_t pages, uint64_t seed)
{
	for (size_t i = 0; i < pages; i++) {
		uint64_t *page = (uint64_t *)(p + i * PAGE);
		page[0] = mix(seed + i);
		page[WORDS - 1] = ~page[0];
	}
}

static void check(const char *what, const char *p, size_t pages, uint64_t seed)
{
	for (size_t i = 0; i < pages; i++) {
		const uint64_t *page = (const uint64_t *)(p + i * PAGE);
		if (page[0] != mix(seed + i))
			fail(what, page, page[0], mix(seed + i));
		if (page[WORDS - 1] != ~mix(seed + i))
			fail(what, page + WORDS - 1, page[WORDS - 1], ~mix(seed + i));
	}
}

static void check_zero(const char *what, const char *p, size_t pages)
{
	for (size_t i = 0; i < pages; i++)
		if (*(const uint64_t *)(p + i * PAGE) != 0)
			fail(what, p + i * PAGE, *(const uint64_t *)(p + i * PAGE), 0);
}

static void join(pid_t pid, const char *what)
{
	int status;
	if (waitpid(pid, &status, 0) != pid || status != 0)
		fail(what, NULL, (uint64_t)status, 0);
}

static sigjmp_buf escape;
static volatile char *expected_fault;
static void on_fault(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)context;
	if (info->si_addr != (void *)expected_fault)
		fail("fault address", info->si_addr, (uint64_t)info->si_addr, (uint64_t)expected_fault);
	siglongjmp(escape, 1);
}

static void must_fault(const char *what, volatile char *p, int write)
{
	expected_fault = p;
	if (sigsetjmp(escape, 1) == 0) {
		char value = *p;
		if (write)
			*p = value;
		fail(what, p, 0, 1);
	}
}

static void touch_and_unmap(uint64_t seed)
{
	char *p = area(256 * PAGE, MAP_PRIVATE);
	check_zero("fresh page", p, 128); /* reads first: the shared zero page */
	put(p, 256, seed);
	check("touched page", p, 256, seed);
	madvise(p + 64 * PAGE, 64 * PAGE, MADV_DONTNEED);
	check_zero("dropped page", p + 64 * PAGE, 64);
	check("page beside dropped", p + 128 * PAGE, 128, seed + 128);
	munmap(p + 10 * PAGE, PAGE);
	must_fault("unmapped page", p + 10 * PAGE, 0);
	munmap(p, 256 * PAGE);
	must_fault("unmapped area", p, 0);
}

static void copy_on_write(uint64_t seed)
{
	char *p = area(256 * PAGE, MAP_PRIVATE);
	put(p, 256, seed);
	pid_t pid = fork();
	if (pid == 0) {
		check("inherited page", p, 256, seed);
		put(p, 128, seed + 1000);
		check("child's page", p, 128, seed + 1000);
		check("child's shared page", p + 128 * PAGE, 128, seed + 128);
		_exit(0);
	}
	put(p + 64 * PAGE, 128, seed + 2000); /* both write at once */
	join(pid, "copy on write child");
	check("parent's page", p, 64, seed);
	check("parent's written page", p + 64 * PAGE, 128, seed + 2000);
	check("parent's shared page", p + 192 * PAGE, 64, seed + 192);
	munmap(p, 256 * PAGE);
}

static void protection(uint64_t seed)
{
	char *p = area(64 * PAGE, MAP_PRIVATE);
	put(p, 64, seed);
	for (int i = 0; i < 8; i++) {
		char *page = p + (mix(seed + (uint64_t)i) % 64) * PAGE;
		mprotect(page, PAGE, PROT_READ);
		must_fault("write to read-only page", page, 1);
		mprotect(page, PAGE, PROT_NONE);
		must_fault("read of inaccessible page", page, 0);
		mprotect(page, PAGE, PROT_READ | PROT_WRITE);
		*(volatile char *)(page + 100) = 1;
	}
	check("page after protection changes", p, 64, seed);
	munmap(p, 64 * PAGE);
}

/* Code that is written, run, changed and run again: mov eax,N; ret. */
static void changing_code(uint64_t seed)
{
	unsigned char *p = (unsigned char *)area(PAGE, MAP_PRIVATE);
	for (int i = 0; i < 8; i++) {
		uint32_t value = (uint32_t)mix(seed + (uint64_t)i);
		mprotect(p, PAGE, PROT_READ | PROT_WRITE);
		p[0] = 0xb8;
		memcpy(p + 1, &value, 4);
		p[5] = 0xc3;
		mprotect(p, PAGE, PROT_READ | PROT_EXEC);
		uint32_t got = ((uint32_t(*)(void))(uintptr_t)p)();
		if (got != value)
			fail("changed code", p, got, value);
	}
	munmap(p, PAGE);
}

static void shared(uint64_t seed)
{
	char *p = area(64 * PAGE, MAP_SHARED);
	volatile uint32_t *turn = (volatile uint32_t *)(p + 63 * PAGE + 64);
	pid_t pid = fork();
	if (pid == 0) {
		for (uint32_t i = 0; i < 20; i++) {
			while (*turn != 2 * i + 1)
				sched_yield();
			check("page from parent", p, 32, seed + i);
			put(p, 32, seed + 500 + i);
			*turn = 2 * i + 2;
		}
		_exit(0);
	}
	for (uint32_t i = 0; i < 20; i++) {
		put(p, 32, seed + i);
		*turn = 2 * i + 1;
		while (*turn != 2 * i + 2)
			sched_yield();
		check("page from child", p, 32, seed + 500 + i);
	}
	join(pid, "sharing child");
	munmap(p, 64 * PAGE);
}

static void moving(uint64_t seed)
{
	char *p = area(64 * PAGE, MAP_PRIVATE);
	put(p, 64, seed);
	for (int i = 0; i < 4; i++) {
		char *old = p, *target = area(128 * PAGE, MAP_PRIVATE);
		p = mremap(old, 64 * PAGE, 64 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target);
		if (p != target)
			fail("mremap", p, 0, 0);
		check("moved page", p, 64, seed);
		must_fault("page moved away", old, 0);
		munmap(target + 64 * PAGE, 64 * PAGE);
	}
	munmap(p, 64 * PAGE);
}

/* Large pages that are made, split by mprotect, broken by fork, and given back. */
static void huge(uint64_t seed)
{
	char *all = area(3 * HUGE_PAGE, MAP_PRIVATE);
	char *p = (char *)(((uintptr_t)all + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
	size_t pages = HUGE_PAGE / PAGE;
	madvise(p, HUGE_PAGE, MADV_HUGEPAGE);
	put(p, pages, seed);
	check("huge page", p, pages, seed);
	mprotect(p + 7 * PAGE, PAGE, PROT_READ);
	must_fault("read-only piece of a huge page", p + 7 * PAGE, 1);
	check("split huge page", p, pages, seed);
	pid_t pid = fork();
	if (pid == 0) {
		check("inherited huge page", p, pages, seed);
		put(p + 8 * PAGE, pages - 8, seed + 3000);
		check("child's huge page", p + 8 * PAGE, pages - 8, seed + 3000);
		_exit(0);
	}
	join(pid, "huge page child");
	check("huge page after fork", p, pages, seed);
	madvise(p + 32 * PAGE, 8 * PAGE, MADV_DONTNEED);
	check_zero("hole in a huge page", p + 32 * PAGE, 8);
	munmap(all, 3 * HUGE_PAGE);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(uint64_t);
	} parts[] = {
		{ "touch", touch_and_unmap }, { "copy-on-write", copy_on_write }, { "protection", protection }, { "code", changing_code },
		{ "shared", shared }, { "mremap", moving }, { "huge", huge },
	};
	uint64_t rounds = argc > 1 ? strtoull(argv[1], NULL, 10) : 5;
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
	sigaction(SIGSEGV, &action, NULL);
	for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
		fflush(stdout); /* or a child would print it again */
		for (uint64_t round = 0; round < rounds; round++)
			parts[i].run(mix(round * 7 + i));
		printf("ok %s\n", parts[i].name);
	}
	printf("faults ok\n");
	return 0;
}
