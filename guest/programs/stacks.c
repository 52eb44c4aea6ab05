/*
 * What signal handlers see of the interrupted program: its own instruction pointer, its own stack, and no kernel or monitor address.
 *   stacks [SECONDS]
 * SIGALRM and SIGPROF come from timers at any instruction, SIGSEGV from a load that must fault; threads compute, call the kernel
 * and start processes meanwhile.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define NOWHERE 0x40000000ul /* never mapped */
#define STACK_SIZE (256ul << 10)
#define VSYSCALL 0xffffffffff600000ul
/* Between kernel text and modules, and the kernel's half as a whole. */
#define HIDDEN_FROM 0xffffffff40000000ul
#define HIDDEN_TO 0xffffffff80000000ul

enum { FLAG_FIXED = 2, FLAG_TF = 1 << 8, FLAG_IF = 1 << 9, FLAG_IOPL = 3 << 12, FLAG_NT = 1 << 14, FLAG_VM = 1 << 17 };
enum { THREADS = 3 };

struct range {
	unsigned long from, to;
};
static struct range code[16], stacks[THREADS + 1];
static int codes;
static volatile sig_atomic_t stop, failures;
static unsigned long counts[65];

/* The handlers' only way to speak: no stdio in there. */
static void complain(const char *what, int sig, unsigned long value)
{
	char line[160];
	if (__atomic_add_fetch(&failures, 1, __ATOMIC_RELAXED) <= 5) {
		int length = snprintf(line, sizeof line, "FAIL %s in signal %d: %#lx\n", what, sig, value);
		if (write(1, line, (size_t)length) < 0)
			_exit(2);
	}
}

static int within(unsigned long value, const struct range *ranges, int count)
{
	for (int i = 0; i < count; i++)
		if (value >= ranges[i].from && value < ranges[i].to)
			return 1;
	return 0;
}

extern const char faulting[], behind[];

static void check(int sig, siginfo_t *info, void *context)
{
	greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
	unsigned long rip = (unsigned long)regs[REG_RIP], rsp = (unsigned long)regs[REG_RSP], flags = (unsigned long)regs[REG_EFL];
	unsigned long selectors = (unsigned long)regs[REG_CSGSFS];
	if (!within(rip, code, codes))
		complain("rip outside of the program", sig, rip);
	if (!within(rsp, stacks, THREADS + 1))
		complain("rsp outside of the stacks", sig, rsp);
	if ((selectors & 0xffff) != 0x33 || selectors >> 48 != 0x2b)
		complain("cs or ss", sig, selectors);
	if ((flags & (FLAG_FIXED | FLAG_TF | FLAG_IF | FLAG_IOPL | FLAG_NT | FLAG_VM)) != (FLAG_FIXED | FLAG_IF))
		complain("flags", sig, flags);
	for (int i = 0; i <= REG_RSP; i++)
		if ((unsigned long)regs[i] >= HIDDEN_FROM && (unsigned long)regs[i] < HIDDEN_TO)
			complain("a monitor's address in a register", sig, (unsigned long)regs[i]);
	if (sig == SIGSEGV) {
		if (rip != (unsigned long)faulting)
			complain("rip of the fault", sig, rip);
		if ((unsigned long)info->si_addr != NOWHERE)
			complain("address of the fault", sig, (unsigned long)info->si_addr);
		regs[REG_RIP] = (greg_t)behind;
	}
	__atomic_add_fetch(&counts[sig], 1, __ATOMIC_RELAXED);
}

static void __attribute__((noinline)) fault(void)
{
	asm volatile("faulting: movb (%0),%%al\nbehind:" : : "r"(NOWHERE) : "rax", "memory");
}

static void compute(void)
{
	/* Kept small, so that no register holds what looks like an address. */
	uint32_t x = 2463534242u;
	for (int i = 0; i < 100000; i++) {
		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
	}
	asm volatile("" : : "r"(x));
}

static void call(void)
{
	int ends[2];
	char byte = 1;
	if (pipe(ends))
		return;
	for (int i = 0; i < 50; i++)
		if (write(ends[1], &byte, 1) == 1 && read(ends[0], &byte, 1) < 0)
			break;
	close(ends[0]);
	close(ends[1]);
}

static void start(void)
{
	pid_t pid = fork();
	if (pid == 0) {
		execl("/bin/busybox", "busybox", "true", NULL);
		_exit(127);
	}
	int status;
	while (waitpid(pid, &status, 0) < 0 && !stop)
		;
}

static void *work(void *argument)
{
	static void (*const works[])(void) = { compute, call, start, fault };
	for (uintptr_t i = (uintptr_t)argument; !stop; i++)
		works[i % 4]();
	return NULL;
}

static void read_maps(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[512], protection[8];
	unsigned long from, to;
	while (maps && fgets(line, sizeof line, maps)) {
		if (sscanf(line, "%lx-%lx %7s", &from, &to, protection) != 3)
			continue;
		if (protection[2] == 'x' && from != VSYSCALL && codes < 16)
			code[codes++] = (struct range){ from, to };
		if (strstr(line, "[stack]"))
			stacks[0] = (struct range){ to - (8ul << 20), to };
	}
	if (maps)
		fclose(maps);
}

int main(int argc, char **argv)
{
	long seconds = argc > 1 ? strtol(argv[1], NULL, 10) : 5;
	pthread_t threads[THREADS];
	struct sigaction action = { .sa_sigaction = check, .sa_flags = SA_SIGINFO | SA_RESTART };
	struct itimerval every = { { 0, 2000 }, { 0, 2000 } };
	struct timespec from, at;
	read_maps();
	for (int i = 0; i < THREADS; i++) {
		pthread_attr_t attributes;
		char *stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (stack == MAP_FAILED)
			return 1;
		stacks[i + 1] = (struct range){ (unsigned long)stack, (unsigned long)stack + STACK_SIZE };
		pthread_attr_init(&attributes);
		pthread_attr_setstack(&attributes, stack, STACK_SIZE);
		if (i == 0) {
			sigaction(SIGALRM, &action, NULL);
			sigaction(SIGPROF, &action, NULL);
			sigaction(SIGSEGV, &action, NULL);
		}
		if (pthread_create(&threads[i], &attributes, work, (void *)(uintptr_t)i))
			return 1;
	}
	setitimer(ITIMER_REAL, &every, NULL);
	setitimer(ITIMER_PROF, &every, NULL);
	clock_gettime(CLOCK_MONOTONIC, &from);
	uintptr_t turn = 0;
	do {
		compute();
		if (++turn % 8 == 0)
			call();
		fault();
		clock_gettime(CLOCK_MONOTONIC, &at);
	} while (at.tv_sec - from.tv_sec < seconds);
	stop = 1;
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	static const int used[] = { SIGALRM, SIGPROF, SIGSEGV };
	for (size_t i = 0; i < sizeof used / sizeof *used; i++)
		if (counts[used[i]] == 0) {
			printf("FAIL signal %d never came\n", used[i]);
			failures++;
		}
	printf("signal frames: %lu SIGALRM, %lu SIGPROF, %lu SIGSEGV, %d wrong\n", counts[SIGALRM], counts[SIGPROF], counts[SIGSEGV],
	       (int)failures);
	return failures != 0;
}
