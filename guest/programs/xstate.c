/*
 * The extended register state (x87, MXCSR, xmm, ymm, zmm and mask registers) belongs to one task and survives context
 * switches, signals and faults. Workers fill all of it with patterns of their own, enter the kernel in one of several
 * ways while it is live, and compare. A kernel that believes in less state than the CPU has corrupts what it does not save.
 *   xstate [ROUNDS]
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

struct state {
	uint8_t vector[32][64]; /* zmm0..31; of these the CPU's part is used */
	uint8_t x87[8][16];
	uint64_t mask[8];
	uint32_t mxcsr;
	uint16_t control;
} __attribute__((aligned(64)));

#define MASK 2176 /* offsets for the assembly below */
#define X87 2048
_Static_assert(__builtin_offsetof(struct state, x87) == X87 && __builtin_offsetof(struct state, mask) == MASK, "offsets");

enum level { SSE, AVX, AVX512 };
static enum level level;

/*
 * around_LEVEL(in, out, number, a, b, c): loads everything from *in, does system call number (or for -1 a ud2, whose handler
 * steps over it, or for -N spins N times, to be interrupted), stores everything to *out. One piece of assembly, because between
 * load and store the compiler must not get a chance to use a register.
 */
#define FUNCTION(name, load, store) \
	asm(".text\n.globl around_" name "\naround_" name ":\n" \
	    "pushq %r12; pushq %r13; pushq %rbx; movq %rdi,%r12; movq %rsi,%r13; movq %rdx,%rax\n" \
	    "movq %rcx,%rdi; movq %r8,%rsi; movq %r9,%rdx\n" \
	    "fninit; fldcw 2244(%r12); .set i,7; .rept 8; fldt 2048+16*i(%r12); .set i,i-1; .endr; ldmxcsr 2240(%r12)\n" load \
	    "cmpq $-1,%rax; jl 2f; je 1f; syscall; jmp 4f\n" \
	    "1: ud2; jmp 4f\n" \
	    "2: incq %rax; jnz 2b\n" \
	    "4:\n" store \
	    "stmxcsr 2240(%r13); fnstcw 2244(%r13); .set i,0; .rept 8; fstpt 2048+16*i(%r13); .set i,i+1; .endr\n" \
	    "fninit; pushq $0x1f80; ldmxcsr (%rsp); popq %rbx\n" \
	    "popq %rbx; popq %r13; popq %r12; ret\n")
#define ONE(op, reg, n, base) op " 64*" #n "(" base "),%" reg #n "\n"
#define PUT(op, reg, n, base) op " %" reg #n ",64*" #n "(" base ")\n"
#define LOW(M, op, reg, base) \
	M(op, reg, 0, base) M(op, reg, 1, base) M(op, reg, 2, base) M(op, reg, 3, base) M(op, reg, 4, base) M(op, reg, 5, base) \
	M(op, reg, 6, base) M(op, reg, 7, base) M(op, reg, 8, base) M(op, reg, 9, base) M(op, reg, 10, base) M(op, reg, 11, base) \
	M(op, reg, 12, base) M(op, reg, 13, base) M(op, reg, 14, base) M(op, reg, 15, base)
#define HIGH(M, op, reg, base) \
	M(op, reg, 16, base) M(op, reg, 17, base) M(op, reg, 18, base) M(op, reg, 19, base) M(op, reg, 20, base) M(op, reg, 21, base) \
	M(op, reg, 22, base) M(op, reg, 23, base) M(op, reg, 24, base) M(op, reg, 25, base) M(op, reg, 26, base) M(op, reg, 27, base) \
	M(op, reg, 28, base) M(op, reg, 29, base) M(op, reg, 30, base) M(op, reg, 31, base)
#define KLOAD(n) "kmovq 2176+8*" #n "(%r12),%k" #n "\n"
#define KSTORE(n) "kmovq %k" #n ",2176+8*" #n "(%r13)\n"
#define MASKS(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)

FUNCTION("sse", LOW(ONE, "movdqu", "xmm", "%r12"), LOW(PUT, "movdqu", "xmm", "%r13"));
FUNCTION("avx", LOW(ONE, "vmovdqu", "ymm", "%r12"), LOW(PUT, "vmovdqu", "ymm", "%r13") "vzeroupper\n");
FUNCTION("avx512", LOW(ONE, "vmovdqu64", "zmm", "%r12") HIGH(ONE, "vmovdqu64", "zmm", "%r12") MASKS(KLOAD),
	 LOW(PUT, "vmovdqu64", "zmm", "%r13") HIGH(PUT, "vmovdqu64", "zmm", "%r13") MASKS(KSTORE) "vzeroupper\n");

typedef void around(const struct state *in, struct state *out, long number, long a, long b, long c);
around around_sse, around_avx, around_avx512;
static around *const arounds[] = { around_sse, around_avx, around_avx512 };

static void fill(struct state *s, uint64_t seed)
{
	uint64_t *words = (uint64_t *)s;
	for (size_t i = 0; i < X87 / 8; i++)
		words[i] = (seed + i + 1) * 0x9e3779b97f4a7c15ull;
	for (int i = 0; i < 8; i++) {
		/* A normal number, so that loading and storing it changes nothing. */
		uint64_t fraction = 1ull << 63 | (seed + (uint64_t)i) * 0x12345679ull;
		uint16_t exponent = (uint16_t)(0x3fff + i);
		memset(s->x87[i], 0, 16);
		memcpy(s->x87[i], &fraction, 8);
		memcpy(s->x87[i] + 8, &exponent, 2);
		s->mask[i] = (seed + (uint64_t)i) * 0xc2b2ae3d27d4eb4full;
	}
	s->mxcsr = 0x1f80 | (uint32_t)(seed & 3) << 13;	     /* rounding mode */
	s->control = (uint16_t)(0x37f | (seed & 3) << 10);
}

static int compare(const struct state *in, const struct state *out, const char *after)
{
	static const size_t width[] = { 16, 32, 64 };
	static const int registers[] = { 16, 16, 32 };
	for (int i = 0; i < registers[level]; i++)
		if (memcmp(in->vector[i], out->vector[i], width[level])) {
			size_t byte = 0;
			while (in->vector[i][byte] == out->vector[i][byte])
				byte++;
			printf("FAIL %cmm%d differs from byte %zu after %s\n", "xyz"[level], i, byte, after);
			return 1;
		}
	for (int i = 0; i < 8; i++)
		if (memcmp(in->x87[i], out->x87[i], 10)) {
			printf("FAIL st%d differs after %s\n", i, after);
			return 1;
		}
	if (level == AVX512 && memcmp(in->mask, out->mask, sizeof in->mask)) {
		printf("FAIL mask registers differ after %s\n", after);
		return 1;
	}
	if (in->mxcsr != out->mxcsr || in->control != out->control) {
		printf("FAIL mxcsr %#x control %#x, expected %#x %#x, after %s\n", out->mxcsr, out->control, in->mxcsr, in->control, after);
		return 1;
	}
	return 0;
}

/* Handlers that use the registers themselves; the kernel must give the interrupted ones back. */
static void clobber(int sig, siginfo_t *info, void *context)
{
	struct state other, ignored;
	(void)info;
	if (sig == SIGILL)
		((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
	fill(&other, 0xdeadbeef + (uint64_t)sig);
	arounds[level](&other, &ignored, SYS_getppid, 0, 0, 0);
}

struct worker {
	uint64_t seed;
	int in, out; /* ends of the pipes to the partner */
	int starts;
	long rounds;
	int failed;
};

static void *work(void *argument)
{
	struct worker *w = argument;
	struct state in, out;
	char token[8] = "x";
	for (long round = 0; round < w->rounds; round++) {
		const char *after = "write and read of a pipe";
		fill(&in, w->seed + (uint64_t)round * 1000);
		/* Ping-pong: each write wakes the partner, each read waits for it, so the CPU's registers change hands. */
		for (int half = 0; half < 2; half++) {
			if ((half == 0) == w->starts)
				arounds[level](&in, &out, SYS_write, w->out, (long)token, 1);
			else
				arounds[level](&in, &out, SYS_read, w->in, (long)token, 1);
			/* One report is enough, but the rounds go on: the partner waits for them. */
			w->failed = w->failed || compare(&in, &out, after);
		}
		switch (round & 3) {
		case 0:
			after = "sched_yield";
			arounds[level](&in, &out, SYS_sched_yield, 0, 0, 0);
			break;
		case 1:
			after = "a signal to itself";
			arounds[level](&in, &out, SYS_tgkill, getpid(), (long)gettid(), SIGUSR1);
			break;
		case 2:
			after = "a fault";
			arounds[level](&in, &out, -1, 0, 0, 0);
			break;
		default:
			after = "spinning";
			arounds[level](&in, &out, -20000, 0, 0, 0);
		}
		w->failed = w->failed || compare(&in, &out, after);
	}
	return NULL;
}

static void timer(void)
{
	struct itimerval every = { { 0, 3000 }, { 0, 3000 } };
	setitimer(ITIMER_REAL, &every, NULL);
}

static enum level find_level(void)
{
	unsigned a, b, c, d;
	uint32_t low, high;
	if (!__get_cpuid(1, &a, &b, &c, &d) || (~c & (1u << 27 | 1u << 28)))
		return SSE;
	asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	if ((low & 6) != 6)
		return SSE;
	/* AVX512F and, for 64-bit masks, AVX512BW. */
	if ((low & 0xe6) == 0xe6 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & 1u << 16) && (b & 1u << 30))
		return AVX512;
	return AVX;
}

int main(int argc, char **argv)
{
	static const char *const names[] = { "sse", "avx", "avx512" };
	long rounds = argc > 1 ? strtol(argv[1], NULL, 10) : 2000;
	int there[2], back[2], status;
	struct sigaction action = { .sa_sigaction = clobber, .sa_flags = SA_SIGINFO | SA_RESTART };
	level = find_level();
	sigaction(SIGUSR1, &action, NULL);
	sigaction(SIGALRM, &action, NULL);
	sigaction(SIGILL, &action, NULL);
	if (pipe(there) || pipe(back))
		return 1;
	struct worker first = { 11, back[0], there[1], 1, rounds, 0 }, second = { 5000000022ull, there[0], back[1], 0, rounds, 0 };
	printf("xstate level %s, %ld rounds\n", names[level], rounds);
	fflush(stdout);

	pid_t pid = fork();
	timer(); /* timers are not inherited: each process has its own */
	if (pid == 0) {
		work(&second);
		fflush(stdout);
		_exit(second.failed);
	}
	work(&first);
	while (waitpid(pid, &status, 0) != pid)
		;
	if (first.failed || status != 0) {
		printf("xstate FAILED in processes\n");
		return 1;
	}
	printf("ok processes\n");

	pthread_t thread;
	if (pthread_create(&thread, NULL, work, &second) != 0)
		return 1;
	work(&first);
	pthread_join(thread, NULL);
	if (first.failed || second.failed) {
		printf("xstate FAILED in threads\n");
		return 1;
	}
	printf("ok threads\nxstate ok\n");
	return 0;
}
