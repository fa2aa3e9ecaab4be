/* Load, as little as possible besides the kernel's work: both ends in one thread, so that every cost of an
 * operation, softirqs included, is this thread's CPU time.  Functions return nanoseconds an operation, or -errno. */

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static double failed(int a, int b)
{
	double error = -errno;

	close(a);
	close(b);
	return error;
}

/* Connect, accept, close from the caller's side. */
double connects(int listener, const struct sockaddr *address, socklen_t size, int count)
{
	double start = now();

	for (int i = 0; i < count; i++) {
		int near = socket(address->sa_family, SOCK_STREAM, 0), far = -1;

		if (near < 0 || connect(near, address, size) || (far = accept(listener, NULL, NULL)) < 0)
			return failed(near, far);
		close(near);
		close(far);
	}
	return (now() - start) / count;
}

/* A request and its response, 64 bytes each, on one connection. */
double requests(int listener, const struct sockaddr *address, socklen_t size, int count)
{
	int near = socket(address->sa_family, SOCK_STREAM, 0), far = -1, on = 1;
	char buffer[64] = "";
	double start, result;

	if (near < 0 || connect(near, address, size) || (far = accept(listener, NULL, NULL)) < 0)
		return failed(near, far);
	setsockopt(near, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	setsockopt(far, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	start = now();
	for (int i = 0; i < count; i++)
		if (send(near, buffer, sizeof buffer, 0) < 0 || recv(far, buffer, sizeof buffer, MSG_WAITALL) < 0 ||
		    send(far, buffer, sizeof buffer, 0) < 0 || recv(near, buffer, sizeof buffer, MSG_WAITALL) < 0)
			return failed(near, far);
	result = (now() - start) / count;
	close(near);
	close(far);
	return result;
}

/* A datagram and its echo, 64 bytes each. */
double echoes(int far, const struct sockaddr *address, socklen_t size, int count)
{
	int near = socket(address->sa_family, SOCK_DGRAM, 0);
	char buffer[64] = "";
	struct sockaddr_storage from;
	double start, result;

	if (near < 0 || connect(near, address, size))
		return failed(near, -1);
	start = now();
	for (int i = 0; i < count; i++) {
		socklen_t length = sizeof from;

		if (send(near, buffer, sizeof buffer, 0) < 0 ||
		    recvfrom(far, buffer, sizeof buffer, 0, (struct sockaddr *)&from, &length) < 0 ||
		    sendto(far, buffer, sizeof buffer, 0, (struct sockaddr *)&from, length) < 0 ||
		    recv(near, buffer, sizeof buffer, 0) < 0)
			return failed(near, -1);
	}
	result = (now() - start) / count;
	close(near);
	return result;
}
